// Asks promptd in words and switches a light by its answer. Board: any ESP32. Library: PubSubClient (Nick O'Leary).
//
// PubSubClient speaks MQTT 3.1.1, publishes with QoS 0 and takes messages of at most 256 bytes, topic included. The request fits: it
// names where the answer goes (`reply_to`), what it may be (`choices`) and that nothing but that is to come (`format`).

#include <Arduino.h>
#include <PubSubClient.h>
#include <WiFi.h>

#ifndef WIFI_NAME
#define WIFI_NAME "my-wifi"
#define WIFI_PASSWORD "my-password"
#define BROKER "192.168.1.10"
#define BROKER_PORT 1883
#endif

static const char *ASK = "promptd/kitchen/ask";
static const char *ANSWER = "promptd/kitchen/answer/esp32-7";
static const int LIGHT = 2;

WiFiClient wifi;
PubSubClient mqtt(wifi);
unsigned long asked = 0, wait = 0;
unsigned int number = 0;

static void ask(const char *words) {
  char request[220];
  // Each question has an id of its own: the same one within five minutes would get the answer of the last.
  snprintf(request, sizeof request,
           "{\"id\":\"esp32-7:%u\",\"prompt\":\"%s\",\"choices\":[\"on\",\"off\"],\"format\":\"text\","
           "\"max_bytes\":100,\"timeout_ms\":20000,\"reply_to\":\"%s\"}",
           ++number, words, ANSWER);
  mqtt.publish(ASK, request);
  asked = millis();
  wait = 25000;
}

static void answered(char *topic, byte *payload, unsigned int length) {
  char text[101];
  unsigned int most = length < sizeof text - 1 ? length : sizeof text - 1;
  memcpy(text, payload, most);
  text[most] = '\0';
  Serial.println(text);
  if (strcmp(text, "on") == 0) digitalWrite(LIGHT, HIGH);
  else if (strcmp(text, "off") == 0) digitalWrite(LIGHT, LOW);
  // `!busy 4000`: the code, and the milliseconds after which to ask again.
  else if (text[0] == '!' && strchr(text, ' ')) wait = millis() - asked + strtoul(strchr(text, ' '), nullptr, 10);
}

void setup() {
  Serial.begin(115200);
  pinMode(LIGHT, OUTPUT);
  WiFi.begin(WIFI_NAME, WIFI_PASSWORD);
  while (WiFi.status() != WL_CONNECTED) delay(200);
  mqtt.setServer(BROKER, BROKER_PORT);
  mqtt.setCallback(answered);
}

void loop() {
  if (!mqtt.connected()) {
    if (!mqtt.connect("esp32-7")) {
      delay(2000);
      return;
    }
    mqtt.subscribe(ANSWER, 1);
    wait = 0;
  }
  mqtt.loop();
  if (millis() - asked >= wait) ask("Turn on the light.");
}
