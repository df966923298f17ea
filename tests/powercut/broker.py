"""As much of an MQTT 5 broker as promptd needs, which notes when promptd acknowledges a prompt and when an answer comes."""
import json
import socket
import struct
import threading


def varint(number):
    out = bytearray()
    while True:
        out.append(number & 127 | (128 if number > 127 else 0))
        number >>= 7
        if not number:
            return bytes(out)


def packet(kind, body):
    return bytes([kind]) + varint(len(body)) + body


def text(value):
    return struct.pack(">H", len(value)) + value.encode()


class Broker:
    """Keeps nothing. `now` gives the place in the disk's history at which something is seen."""

    def __init__(self, now):
        self.now, self.lock = now, threading.Lock()
        self.acknowledged, self.answers = {}, []
        self.sent, self.connection, self.ready = {}, None, threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def close(self):
        self.listener.close()
        if self.connection:
            self.connection.close()

    def ask(self, number, prompt):
        """Publishes a prompt with QoS 1 under this packet number."""
        body = text("promptd/n/ask") + struct.pack(">H", number) + b"\0" + json.dumps(prompt).encode()
        with self.lock:
            self.sent[number] = prompt["id"]
            self.connection.sendall(packet(0x32, body))

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
                self.serve(connection)
            except OSError:
                if self.listener.fileno() < 0:
                    return

    def read(self, stream):
        kind = stream.read(1)
        if not kind:
            return None
        length, shift = 0, 0
        while True:
            byte = stream.read(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return kind[0], stream.read(length)

    def serve(self, connection):
        stream = connection.makefile("rb")
        while (message := self.read(stream)) is not None:
            kind, body = message
            reply = None
            if kind >> 4 == 1:  # CONNECT
                self.connection = connection
                reply = packet(0x20, b"\0\0\0")
            elif kind >> 4 == 8:  # SUBSCRIBE
                self.ready.set()
                reply = packet(0x90, body[:2] + b"\0" + b"\1" * self.filters(body))
            elif kind >> 4 == 3:  # PUBLISH
                reply = self.published(kind, body)
            elif kind >> 4 == 4:  # PUBACK
                name = self.sent.pop(struct.unpack(">H", body[:2])[0], None)
                if name is not None:
                    self.acknowledged.setdefault(name, self.now())
            elif kind >> 4 == 12:  # PINGREQ
                reply = packet(0xD0, b"")
            if reply:
                with self.lock:
                    connection.sendall(reply)

    @staticmethod
    def filters(body):
        at, count = 3 + body[2], 0
        while at < len(body):
            at += 3 + struct.unpack(">H", body[at : at + 2])[0]
            count += 1
        return count

    def published(self, kind, body):
        length = struct.unpack(">H", body[:2])[0]
        topic, at = body[2 : 2 + length].decode(), 2 + length
        number = None
        if kind >> 1 & 3:
            number, at = body[at : at + 2], at + 2
        size, shift = 0, 0
        while True:
            byte = body[at]
            size, shift, at = size | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                break
        payload = body[at + size :]
        if "/answer" in topic:
            self.answers.append((self.now(), json.loads(payload)))
        return packet(0x40, number) if number else None
