// Stands in for the ESP32's WiFi: a network that is always there, and a client that is a TCP socket.
#pragma once
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "Arduino.h"

enum { WL_CONNECTED = 3 };
struct Network {
  void begin(const char *, const char *) {}
  int status() { return WL_CONNECTED; }
};
inline Network WiFi;

class WiFiClient {
  int fd = -1;

 public:
  bool connect(const char *host, uint16_t port) {
    stop();
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || inet_pton(AF_INET, host, &to.sin_addr) != 1 || ::connect(fd, (sockaddr *)&to, sizeof to) != 0) stop();
    return fd >= 0;
  }
  bool connected() const { return fd >= 0; }
  bool write(const byte *bytes, size_t length) { return ::send(fd, bytes, length, MSG_NOSIGNAL) == (ssize_t)length; }
  bool available() {
    pollfd one{fd, POLLIN, 0};
    return fd >= 0 && poll(&one, 1, 10) == 1;
  }
  int read() {
    byte one;
    if (::recv(fd, &one, 1, 0) == 1) return one;
    stop();
    return -1;
  }
  void stop() {
    if (fd >= 0) close(fd);
    fd = -1;
  }
};
