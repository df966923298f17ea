// Stands in for the Arduino core: what the sketch of examples/esp32 uses of it, on a machine with an operating system.
#pragma once
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

typedef uint8_t byte;
enum { LOW = 0, HIGH = 1, OUTPUT = 3 };

inline unsigned long millis() {
  static const auto began = std::chrono::steady_clock::now();
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - began).count() + 1;
}
inline void delay(unsigned long ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }
inline void pinMode(int, int) {}

// What the pins were set to; the last is what counts.
inline int pin_state[64];
inline bool pin_written;
inline void digitalWrite(int pin, int state) {
  pin_state[pin] = state;
  pin_written = true;
}

struct SerialPort {
  void begin(unsigned long) {}
  void println(const char *text) {
    std::printf("%s\n", text);
    std::fflush(stdout);
  }
};
inline SerialPort Serial;
