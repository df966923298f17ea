//! What the settings say of the broker, in the words of the MQTT door.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::DaemonError;
use super::translate::first_line;
use crate::mqtt;
use crate::settings::{self, Settings};

/// The board's name in topics.
pub(super) fn node(settings: &Settings) -> String {
    settings.mqtt.as_ref().and_then(|mqtt| mqtt.node.clone()).unwrap_or_else(host_name)
}

/// The MQTT door's configuration, where there is one.
///
/// # Errors
/// Which key is wrong, and in what.
pub(super) fn config(
    settings: &Settings,
    environment: &[(OsString, OsString)],
) -> Result<Option<mqtt::Config>, DaemonError> {
    let credentials = environment.iter().find(|(name, _)| name == "CREDENTIALS_DIRECTORY");
    let credentials = credentials.map(|(_, value)| PathBuf::from(value));
    let mqtt = settings.mqtt.as_ref();
    mqtt.map(|mqtt| translated(mqtt, &node(settings), credentials.as_deref())).transpose()
}

/// What of the settings is read again without a restart is left out: who promptd is to the broker.
pub(super) fn without_credentials(mqtt: &settings::Mqtt) -> settings::Mqtt {
    let settings::MqttTls { alpn, allow_tls12, .. } = &mqtt.tls;
    let tls =
        settings::MqttTls { alpn: alpn.clone(), allow_tls12: *allow_tls12, ..Default::default() };
    settings::Mqtt { username: None, password_file: None, tls, ..mqtt.clone() }
}

/// The MQTT door's configuration: address, names and password.
///
/// `credentials` is systemd's `$CREDENTIALS_DIRECTORY`: what lies there under the name of a key's file stands in for the key.
fn translated(
    mqtt: &settings::Mqtt,
    node: &str,
    credentials: Option<&Path>,
) -> Result<mqtt::Config, DaemonError> {
    let file = |key: &Option<PathBuf>, name: &str| {
        let credential = || credentials.map(|dir| dir.join(name)).filter(|file| file.is_file());
        key.clone().or_else(credential)
    };
    let password_file = file(&mqtt.password_file, "mqtt-password");
    let wrong = |key: &str, error: &dyn std::fmt::Display| {
        DaemonError::Settings(format!("`mqtt.{key}`: {error}"))
    };
    let urls = mqtt.urls.iter().map(|url| ("urls", url));
    let urls = mqtt.url.iter().map(|url| ("url", url)).chain(urls);
    let brokers: Vec<_> = urls
        .map(|(key, url)| mqtt::BrokerUrl::parse(url).map_err(|error| wrong(key, &error)))
        .collect::<Result<_, _>>()?;
    let Some(broker) = brokers.first().cloned() else {
        return Err(DaemonError::Settings(
            "`mqtt.url` is missing: the broker's address, such as \"mqtt://localhost:1883\""
                .to_owned(),
        ));
    };
    // That it can be read is seen now; what is in it counts for each connection.
    let password = password_file.as_deref().map(first_line).transpose();
    password.map_err(|error| wrong("password_file", &error))?;
    let config = mqtt::Config {
        username: mqtt.username.clone(),
        brokers,
        password_file,
        tls: mqtt::TlsFiles {
            ca: file(&mqtt.tls.ca_file, "mqtt-ca"),
            certificate: file(&mqtt.tls.certificate_file, "mqtt-certificate"),
            key: file(&mqtt.tls.key_file, "mqtt-key"),
            alpn: mqtt.tls.alpn.clone(),
            allow_tls12: mqtt.tls.allow_tls12,
        },
        base_topic: mqtt.base_topic.clone(),
        client_id: mqtt.client_id.clone(),
        keep_alive: Duration::from_secs(mqtt.keep_alive_seconds.into()),
        reply_prefixes: mqtt.reply_prefixes.clone(),
        restrict_response_topics: mqtt.restrict_response_topics,
        discovery_prefix: mqtt.discovery_prefix.clone(),
        fleet: mqtt.fleet.as_ref().map(|fleet| mqtt::FleetConfig {
            group: fleet.group.clone(),
            high_water: fleet.high_water.into(),
        }),
        ..mqtt::Config::new(broker, node)
    };
    config.check().map_err(|error| DaemonError::Settings(format!("`mqtt`: {error}")))?;
    Ok(config)
}

/// The board's name for topics: the host name's first label, in lower case, with what no topic level may have left out.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let first = name.split('.').next().unwrap_or_default();
    let slug: String =
        first.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    if slug.is_empty() { "board".to_owned() } else { slug }
}
