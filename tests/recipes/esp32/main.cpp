// Runs the sketch until it has switched its light, or for a minute.
#include "sketch.h"

int main() {
  setup();
  while (!pin_written && millis() < 60000) loop();
  std::printf("light %s\n", !pin_written ? "untouched" : pin_state[LIGHT] ? "on" : "off");
  return pin_written ? 0 : 1;
}
