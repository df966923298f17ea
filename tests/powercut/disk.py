"""A disk whose every write and flush is known, so that a power cut at any moment of its past can be made.

A file system in user space (the kernel's FUSE protocol, spoken over /dev/fuse) holds one file; a loop device stands on it. What
the file system on that device writes and flushes arrives here in its order. A cut leaves what was flushed before, and of what was
written after the last flush whatever the cut is told to leave: a prefix, or any of the blocks.
"""
import ctypes
import os
import stat
import struct
import subprocess
import threading

BLOCK = 4096
FLUSH = None  # in the log, where a flush was asked for
IN = struct.Struct("<IIQQIIII")
OUT = struct.Struct("<IiQ")
NO_REPLY = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET
ENOSYS, EOPNOTSUPP, ENOENT = 38, 95, 2
LIBC = ctypes.CDLL(None, use_errno=True)


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Disk:
    """The disk, mounted at `place`/disk.mnt as an ext4 file system."""

    def __init__(self, place, size):
        self.image, self.log, self.place = bytearray(size), [], place
        self.files, self.mount_point = os.path.join(place, "disk.fuse"), os.path.join(place, "disk.mnt")
        os.mkdir(self.files)
        os.mkdir(self.mount_point)
        self.fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.fuse},rootmode=40000,user_id=0,group_id=0"
        if LIBC.mount(b"promptd-disk", self.files.encode(), b"fuse", 0, options.encode()):
            error = ctypes.get_errno()
            raise OSError(error, f"mount of FUSE: {os.strerror(error)}")
        threading.Thread(target=self.serve, daemon=True).start()
        self.loop = subprocess.check_output(["losetup", "-f", "--show", os.path.join(self.files, "disk")], text=True).strip()
        run("mkfs.ext4", "-q", "-b", str(BLOCK), self.loop)
        run("mount", self.loop, self.mount_point)

    def begin(self):
        """What stands on it now is where cuts begin."""
        run("sync", "-f", self.mount_point)
        self.base, self.log = bytes(self.image), []

    def now(self):
        """A place in the log: what was written before is in front of it."""
        return len(self.log)

    def close(self):
        for command in (["umount", "-l", self.mount_point], ["losetup", "-d", self.loop], ["umount", "-l", self.files]):
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
        os.close(self.fuse)

    def cut(self, at, chance, lies=0):
        """The image that a power cut at this place of the log leaves. `chance` tells of each block that was written since the
        last flush whether it arrived; None: all did. `lies`: so many of the last flushes did nothing, as on a bad card."""
        image = bytearray(self.base)
        log = self.log[:at]
        flushes = [n for n, entry in enumerate(log) if entry is FLUSH]
        flushes = flushes[: len(flushes) - lies]
        flushed = flushes[-1] if flushes else 0
        for n, entry in enumerate(log):
            if entry is FLUSH:
                continue
            offset, data = entry
            for start in range(0, len(data), BLOCK):
                part = data[start : start + BLOCK]
                if n < flushed or chance is None or chance():
                    image[offset + start : offset + start + len(part)] = part
        return image

    def serve(self):
        while True:
            try:
                message = os.read(self.fuse, (1 << 17) + 4096)
            except OSError:
                return
            _, opcode, unique, node, *_ = IN.unpack_from(message)
            error, reply = self.answer(opcode, node, message[IN.size :])
            if opcode not in NO_REPLY:
                try:
                    os.write(self.fuse, OUT.pack(OUT.size + len(reply), -error, unique) + reply)
                except OSError:
                    return

    def attributes(self, node):
        mode, size = (stat.S_IFDIR | 0o700, 0) if node == 1 else (stat.S_IFREG | 0o600, len(self.image))
        return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, BLOCK, 0)

    def answer(self, opcode, node, body):
        if opcode == 26:  # INIT: version 7.31, writes of 128 KiB, nothing cached for later
            major, minor, ahead, _ = struct.unpack_from("<IIII", body)
            return 0, struct.pack("<IIIIHHIIHHI7I", 7, min(minor, 31), ahead, 1 | 1 << 5 | 1 << 22, 16, 12, 1 << 17, 1, 32, 0, 0, *[0] * 7)
        if opcode == 1:  # LOOKUP
            if node != 1 or body.rstrip(b"\0") != b"disk":
                return ENOENT, b""
            return 0, struct.pack("<QQQQII", 2, 0, 3600, 3600, 0, 0) + self.attributes(2)
        if opcode in (3, 4):  # GETATTR, SETATTR
            return 0, struct.pack("<QII", 3600, 0, 0) + self.attributes(node)
        if opcode in (14, 27):  # OPEN, OPENDIR
            return 0, struct.pack("<QII", 1, 0, 0)
        if opcode == 15:  # READ
            _, offset, size = struct.unpack_from("<QQI", body)
            return 0, bytes(self.image[offset : offset + size])
        if opcode == 16:  # WRITE
            _, offset, size = struct.unpack_from("<QQI", body)
            data = body[40 : 40 + size]
            self.image[offset : offset + size] = data
            self.log.append((offset, data))
            return 0, struct.pack("<II", size, 0)
        if opcode == 20:  # FSYNC
            self.log.append(FLUSH)
            return 0, b""
        if opcode == 17:  # STATFS
            return 0, bytes(80)
        if opcode in (18, 25, 29, 34, 38):  # RELEASE, FLUSH, RELEASEDIR, ACCESS, DESTROY
            return 0, b""
        if opcode == 43:  # FALLOCATE, which is how a loop device discards
            return EOPNOTSUPP, b""
        return ENOSYS, b""
