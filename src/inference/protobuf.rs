//! Reads protobuf's wire format field by field, bounded by what is there. Knows no message.
//!
//! The encoding is <https://protobuf.dev/programming-guides/encoding/>.

/// What bytes turned out not to be.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Fault {
    /// A field is longer than what is left.
    #[error("is cut short: a field at byte {at} needs {needed} more bytes, {have} are left")]
    Truncated { at: usize, needed: u64, have: usize },
    /// The bytes are no message.
    #[error("is no ONNX model: {what} (seen at byte {at})")]
    Malformed { what: &'static str, at: usize },
}

/// A cursor over one message; `base` is where its bytes begin in the file, for error messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    base: usize,
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    pub(super) value: Value<'a>,
}

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(Reader<'a>),
    Fixed,
}

impl<'a> Reader<'a> {
    /// A whole message.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0, base: 0 }
    }

    fn malformed(&self, what: &'static str) -> Fault {
        Fault::Malformed { what, at: self.base + self.at }
    }

    /// Bytes that are not read yet.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The message as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes).into_owned()
    }

    /// The next field; `None` at the end.
    pub(super) fn field(&mut self) -> Result<Option<Field<'a>>, Fault> {
        if self.left() == 0 {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(self.malformed("it is not encoded as protobuf")),
        };
        if tag >> 3 == 0 {
            return Err(self.malformed("it is not encoded as protobuf"));
        }
        Ok(Some(Field { number: tag >> 3, value }))
    }

    /// A number of a packed list.
    pub(super) fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(Fault::Truncated {
                at: self.base + self.at,
                needed: 1,
                have: 0,
            })?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed("it holds a number of more than 64 bits"))
    }

    fn take(&mut self, length: u64) -> Result<Reader<'a>, Fault> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let bytes = end.and_then(|end| self.bytes.get(self.at..end));
        let Some(bytes) = bytes else {
            return Err(Fault::Truncated {
                at: self.base + self.at,
                needed: length,
                have: self.left(),
            });
        };
        let taken = Reader { bytes, at: 0, base: self.base + self.at };
        self.at += bytes.len();
        Ok(taken)
    }
}
