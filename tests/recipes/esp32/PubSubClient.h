// Stands in for PubSubClient: the same calls, MQTT 3.1.1, QoS 0 when it publishes, and its limit: a message of more than 256 bytes is
// neither sent nor handed on.
#pragma once
#include <string>

#include "WiFi.h"

class PubSubClient {
  static const size_t MOST = 256;
  WiFiClient &net;
  const char *host = "";
  uint16_t port = 0;
  void (*callback)(char *, byte *, unsigned int) = nullptr;

  static std::string text(const std::string &s) {
    return std::string{(char)(s.size() >> 8), (char)(s.size() & 0xff)} + s;
  }
  bool send(byte kind, const std::string &body) {
    std::string packet(1, (char)kind);
    size_t left = body.size();
    do {
      byte part = left & 0x7f;
      left >>= 7;
      packet += (char)(left ? part | 0x80 : part);
    } while (left);
    packet += body;
    if (packet.size() > MOST) return false;
    return net.write((const byte *)packet.data(), packet.size());
  }
  bool packet(byte &kind, std::string &body) {
    int first = net.read();
    size_t length = 0;
    int shift = 0, part;
    do {
      part = net.read();
      length |= (size_t)(part & 0x7f) << shift;
      shift += 7;
    } while (part > 0x7f);
    body.clear();
    for (size_t at = 0; at < length && net.connected(); ++at) body += (char)net.read();
    kind = (byte)first;
    return net.connected();
  }

 public:
  explicit PubSubClient(WiFiClient &net) : net(net) {}
  void setServer(const char *to, uint16_t at) { host = to, port = at; }
  void setCallback(void (*call)(char *, byte *, unsigned int)) { callback = call; }
  bool connected() const { return net.connected(); }
  bool connect(const char *id) {
    byte kind;
    std::string body;
    std::string hello = text("MQTT") + std::string("\x04\x02\x00\x0f", 4) + text(id);
    return net.connect(host, port) && send(0x10, hello) && packet(kind, body) && kind == 0x20 && body.size() == 2 && body[1] == 0;
  }
  bool subscribe(const char *topic, byte qos) { return send(0x82, std::string("\0\1", 2) + text(topic) + (char)qos); }
  bool publish(const char *topic, const char *payload) { return send(0x30, text(topic) + payload); }
  bool loop() {
    byte kind;
    std::string body;
    while (net.available()) {
      if (!packet(kind, body)) return false;
      if ((kind & 0xf0) != 0x30) continue;
      size_t length = (byte)body[0] << 8 | (byte)body[1];
      std::string topic = body.substr(2, length);
      size_t at = 2 + length;
      if (kind & 0x06) {
        std::string number = body.substr(at, 2);
        at += 2;
        send(0x40, number);
      }
      std::string payload = body.substr(at);
      if (body.size() + 2 <= MOST && callback) callback(topic.data(), (byte *)payload.data(), payload.size());
    }
    return net.connected();
  }
};
