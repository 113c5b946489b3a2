//! A cpio archive in the format `newc`, which the kernel unpacks as its first file system.

use std::io::{self, Write};

/// Writes the archive's members in order; [`finish`](Self::finish) closes it.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    out: W,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    pub(crate) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.member(name, DIRECTORY, (0, 0), &[])
    }

    /// A file that may be run.
    pub(crate) fn file(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.member(name, FILE, (0, 0), content)
    }

    pub(crate) fn character_device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.member(name, DEVICE, (major, minor), &[])
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.member("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()
    }

    /// The header is thirteen numbers of eight hexadecimal digits; name and content are padded to four bytes.
    fn member(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let length = |n: usize| u32::try_from(n).map_err(io::Error::other);
        let fields = [
            self.inode,
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // time
            length(content.len())?,
            0, // device of the file system
            0,
            device.0,
            device.1,
            length(name.len() + 1)?,
            0, // checksum, unused in this format
        ];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0; 4][..padding(110 + name.len() + 1) + 1])?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; 4][..padding(content.len())])
    }
}

fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_aligned_and_the_trailer_ends() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.directory("dev").unwrap();
        archive.character_device("dev/null", 1, 3).unwrap();
        archive.file("init", b"hello").unwrap();
        archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 4);
        let init = text.find("init\0").unwrap();
        let content = text.find("hello").unwrap();
        assert_eq!(content, (init + 5).next_multiple_of(4));
        assert!(text[..init].ends_with("0000000500000000") || text[init - 40..init].contains("00000005"));
        assert!(text.contains("TRAILER!!!\0"));
    }
}
