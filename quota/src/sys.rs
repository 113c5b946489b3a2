//! The kernel's side: quota calls, extended inode attributes, superblock geometry. One call per function.
//!
//! # Safety
//!
//! Every call hands the kernel a file descriptor that is borrowed for its duration and a pointer to one whole,
//! exclusively borrowed `repr(C)` value of plain integers, of the size that the command expects. The kernel keeps
//! neither after returning, and every bit pattern that it may write is a valid value of these types.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::ioctl::{Opcode, opcode};

/// The project type in the low byte of a quota command (`PRJQUOTA`, linux/quota.h).
const PRJQUOTA: u32 = 2;

const Q_XQUOTAON: u32 = xfs_command(1);
const Q_XQUOTAOFF: u32 = xfs_command(2);
const Q_XGETQUOTA: u32 = xfs_command(3);
const Q_XSETQLIM: u32 = xfs_command(4);
const Q_XGETQSTATV: u32 = xfs_command(8);
const Q_XGETNEXTQUOTA: u32 = xfs_command(9);

/// The X commands serve XFS, ext4 and f2fs alike (linux/dqblk_xfs.h), so they are the only ones used.
const fn xfs_command(number: u32) -> u32 {
    ((b'X' as u32) << 8 | number) << 8 | PRJQUOTA
}

/// `quotactl_fd`, Linux 5.14. The number is the same on every architecture.
const SYS_QUOTACTL_FD: c_long = 443;
/// `file_getattr` and `file_setattr`, Linux 6.17. The numbers are the same on every architecture.
const SYS_FILE_GETATTR: c_long = 468;
const SYS_FILE_SETATTR: c_long = 469;

/// `struct fs_disk_quota`. Block fields count 512-byte basic blocks, whatever the file system's block size.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct FsDiskQuota {
    pub(crate) version: i8,
    pub(crate) flags: i8,
    pub(crate) fieldmask: u16,
    pub(crate) id: u32,
    pub(crate) blk_hardlimit: u64,
    pub(crate) blk_softlimit: u64,
    pub(crate) ino_hardlimit: u64,
    pub(crate) ino_softlimit: u64,
    pub(crate) bcount: u64,
    pub(crate) icount: u64,
    /// Signed in the header; read as unsigned, they reach from 1970 to 2106.
    pub(crate) itimer: u32,
    pub(crate) btimer: u32,
    pub(crate) iwarns: u16,
    pub(crate) bwarns: u16,
    pub(crate) itimer_hi: u8,
    pub(crate) btimer_hi: u8,
    pub(crate) rtbtimer_hi: u8,
    pub(crate) padding2: u8,
    pub(crate) rtb_hardlimit: u64,
    pub(crate) rtb_softlimit: u64,
    pub(crate) rtbcount: u64,
    pub(crate) rtbtimer: i32,
    pub(crate) rtbwarns: u16,
    pub(crate) padding3: i16,
    pub(crate) padding4: [u8; 8],
}

pub(crate) const FS_DQ_ISOFT: u16 = 1 << 0;
pub(crate) const FS_DQ_IHARD: u16 = 1 << 1;
pub(crate) const FS_DQ_BSOFT: u16 = 1 << 2;
pub(crate) const FS_DQ_BHARD: u16 = 1 << 3;
pub(crate) const FS_DQ_BTIMER: u16 = 1 << 6;
pub(crate) const FS_DQ_ITIMER: u16 = 1 << 7;
/// The `*_hi` bytes carry bits 32 to 39 of the timers.
pub(crate) const FS_DQ_BIGTIME: u16 = 1 << 15;

/// `struct fs_qfilestatv`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct FsQfilestatv {
    ino: u64,
    nblks: u64,
    nextents: u32,
    pad: u32,
}

/// `struct fs_quota_statv`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct FsQuotaStatv {
    pub(crate) version: i8,
    pad1: u8,
    pub(crate) flags: u16,
    incoredqs: u32,
    files: [FsQfilestatv; 3],
    pub(crate) btimelimit: i32,
    pub(crate) itimelimit: i32,
    rtbtimelimit: i32,
    bwarnlimit: u16,
    iwarnlimit: u16,
    rtbwarnlimit: u16,
    pad3: u16,
    pad4: u32,
    pad2: [u64; 7],
}

pub(crate) const FS_QUOTA_UDQ_ACCT: u16 = 1 << 0;
pub(crate) const FS_QUOTA_UDQ_ENFD: u16 = 1 << 1;
pub(crate) const FS_QUOTA_GDQ_ACCT: u16 = 1 << 2;
pub(crate) const FS_QUOTA_GDQ_ENFD: u16 = 1 << 3;
pub(crate) const FS_QUOTA_PDQ_ACCT: u16 = 1 << 4;
pub(crate) const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;

/// `struct fsxattr`: what an inode knows of its project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct FsXattr {
    pub(crate) xflags: u32,
    pub(crate) extsize: u32,
    pub(crate) nextents: u32,
    pub(crate) projid: u32,
    pub(crate) cowextsize: u32,
    pad: [u8; 8],
}

/// `struct file_attr` of file_getattr(2) and file_setattr(2).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct FileAttr {
    xflags: u64,
    extsize: u32,
    nextents: u32,
    pub(crate) projid: u32,
    cowextsize: u32,
}

pub(crate) const FS_XFLAG_PROJINHERIT: u32 = 0x200;

const FS_IOC_FSGETXATTR: Opcode = opcode::read::<FsXattr>(b'X', 31);
const FS_IOC_FSSETXATTR: Opcode = opcode::write::<FsXattr>(b'X', 32);
const XFS_IOC_FSGEOMETRY_V1: Opcode = opcode::read::<XfsGeometry>(b'X', 100);

/// `struct xfs_fsop_geom_v1`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct XfsGeometry {
    sizes: [u32; 8],
    blocks: [u64; 4],
    pub(crate) uuid: [u8; 16],
    stripe: [u32; 2],
    version: i32,
    pub(crate) flags: u32,
    sector: [u32; 3],
    pad: u32,
}

/// `struct xfs_fs_eofblocks`, version 1: which files to look at.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct XfsEofblocks {
    version: u32,
    flags: u32,
    uid: u32,
    gid: u32,
    project: u32,
    pad32: u32,
    min_file_size: u64,
    pad64: [u64; 12],
}

/// Only files of the project.
const XFS_EOF_FLAGS_PRID: u32 = 1 << 3;
const XFS_IOC_FREE_EOFBLOCKS: Opcode = opcode::read::<XfsEofblocks>(b'X', 58);

pub(crate) const XFS_GEOMETRY_PROJID32: u32 = 1 << 11;
pub(crate) const XFS_GEOMETRY_V5SB: u32 = 1 << 15;
pub(crate) const XFS_GEOMETRY_FTYPE: u32 = 1 << 16;

const _: () = {
    assert!(size_of::<FsDiskQuota>() == 112);
    assert!(size_of::<FsQuotaStatv>() == 160);
    assert!(size_of::<FsXattr>() == 28);
    assert!(size_of::<FileAttr>() == 24);
    assert!(size_of::<XfsGeometry>() == 112);
    assert!(size_of::<XfsEofblocks>() == 128);
};

/// How a quota call names its file system.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// Any descriptor on it: quotactl_fd(2).
    Descriptor(BorrowedFd<'a>),
    /// The path of its block device's node: quotactl(2).
    Node(&'a CStr),
}

/// Limits and usage of one project, `Q_XGETQUOTA`.
pub(crate) fn get_quota(target: Target<'_>, project: u32) -> io::Result<FsDiskQuota> {
    let mut quota = FsDiskQuota::default();
    quota_call(target, Q_XGETQUOTA, project, &mut quota).map(|()| quota)
}

/// The same for the first project known to the file system from `project` on, `Q_XGETNEXTQUOTA`.
pub(crate) fn get_next_quota(target: Target<'_>, project: u32) -> io::Result<FsDiskQuota> {
    let mut quota = FsDiskQuota::default();
    quota_call(target, Q_XGETNEXTQUOTA, project, &mut quota).map(|()| quota)
}

/// Sets the fields named by `quota.fieldmask`, `Q_XSETQLIM`.
pub(crate) fn set_quota(target: Target<'_>, project: u32, quota: FsDiskQuota) -> io::Result<()> {
    let mut quota = quota;
    quota_call(target, Q_XSETQLIM, project, &mut quota)
}

/// What is accounted and enforced, `Q_XGETQSTATV`.
pub(crate) fn quota_state(target: Target<'_>) -> io::Result<FsQuotaStatv> {
    let mut state = FsQuotaStatv { version: 1, ..FsQuotaStatv::default() };
    quota_call(target, Q_XGETQSTATV, 0, &mut state).map(|()| state)
}

/// Turns enforcement of project limits on or off, `Q_XQUOTAON`, `Q_XQUOTAOFF`.
pub(crate) fn set_enforcement(target: Target<'_>, on: bool) -> io::Result<()> {
    let mut flags = c_uint::from(FS_QUOTA_PDQ_ENFD);
    quota_call(target, if on { Q_XQUOTAON } else { Q_XQUOTAOFF }, 0, &mut flags)
}

/// Payloads of quota commands: plain integers, `repr(C)`.
trait Payload {}
impl Payload for FsDiskQuota {}
impl Payload for FsQuotaStatv {}
impl Payload for c_uint {}

fn quota_call<T: Payload>(target: Target<'_>, command: u32, project: u32, data: &mut T) -> io::Result<()> {
    match target {
        Target::Descriptor(fd) => by_descriptor(fd, command, project, data),
        Target::Node(path) => by_node(path, command, project, data),
    }
}

fn by_descriptor<T: Payload>(fd: BorrowedFd<'_>, command: u32, project: u32, data: &mut T) -> io::Result<()> {
    let data = ptr::from_mut(data);
    // SAFETY: `fd` is open and `data` points to a whole payload borrowed exclusively for the call; the callers above
    // pair each command with the payload type that it reads or writes.
    let ret = unsafe { libc::syscall(SYS_QUOTACTL_FD, fd.as_raw_fd(), command, project, data) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn by_node<T: Payload>(path: &CStr, command: u32, project: u32, data: &mut T) -> io::Result<()> {
    let data = ptr::from_mut(data);
    // SAFETY: `path` is NUL-terminated; `data` as in `by_descriptor`.
    let ret = unsafe { libc::syscall(libc::SYS_quotactl, command, path.as_ptr(), project, data) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel has quotactl_fd(2): with a descriptor that cannot be open it answers `EBADF`, else `ENOSYS`.
///
/// `ENOSYS` on a real descriptor says nothing: file systems without quota answer it, too.
pub(crate) fn has_quotactl_fd() -> bool {
    let data: *mut FsQuotaStatv = ptr::null_mut();
    // SAFETY: descriptor -1 is never open, so the kernel returns before it looks at the null pointer.
    let ret = unsafe { libc::syscall(SYS_QUOTACTL_FD, -1 as c_int, Q_XGETQSTATV, 0u32, data) };
    ret != 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// Whether the kernel has quotactl(2) at all (`CONFIG_QUOTACTL`): without a device it answers `ENODEV`, else `ENOSYS`.
pub(crate) fn has_quotactl() -> bool {
    let (device, data): (*const c_char, *mut FsQuotaStatv) = (ptr::null(), ptr::null_mut());
    // SAFETY: both pointers are null; the kernel fails the lookup of the device before it uses the second one.
    let ret = unsafe { libc::syscall(libc::SYS_quotactl, Q_XGETQSTATV, device, 0u32, data) };
    ret != 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// The inode's flags and project, `FS_IOC_FSGETXATTR`.
pub(crate) fn get_xattr(fd: BorrowedFd<'_>) -> io::Result<FsXattr> {
    let mut attributes = FsXattr::default();
    let data = ptr::from_mut(&mut attributes);
    // SAFETY: `fd` is open; the command writes one `fsxattr` to `data`, which points to a whole one.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), ioctl_number(FS_IOC_FSGETXATTR), data) };
    if ret == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

/// Writes them back, `FS_IOC_FSSETXATTR`. Pass only what [`get_xattr`] gave, with the project changed.
pub(crate) fn set_xattr(fd: BorrowedFd<'_>, attributes: &FsXattr) -> io::Result<()> {
    let data = ptr::from_ref(attributes);
    // SAFETY: `fd` is open; the command only reads one `fsxattr` from `data`, which points to a whole one.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), ioctl_number(FS_IOC_FSSETXATTR), data) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The flags and project of what cannot be opened (a symbolic link, FIFO, device, socket) by its name in `dir`,
/// without following it: file_getattr(2). `ENOSYS` before Linux 6.17.
pub(crate) fn get_attr_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<FileAttr> {
    let mut attributes = FileAttr::default();
    let (data, size) = (ptr::from_mut(&mut attributes), size_of::<FileAttr>());
    let (dir, name) = (dir.as_raw_fd(), name.as_ptr());
    // SAFETY: `dir` is open, `name` NUL-terminated, and `data` points to `size` writable bytes.
    let ret = unsafe { libc::syscall(SYS_FILE_GETATTR, dir, name, data, size, libc::AT_SYMLINK_NOFOLLOW) };
    if ret == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

/// Writes them back: file_setattr(2). Pass only what [`get_attr_at`] gave, with the project changed.
pub(crate) fn set_attr_at(dir: BorrowedFd<'_>, name: &CStr, attributes: &FileAttr) -> io::Result<()> {
    let (data, size) = (ptr::from_ref(attributes), size_of::<FileAttr>());
    let (dir, name) = (dir.as_raw_fd(), name.as_ptr());
    // SAFETY: `dir` is open, `name` NUL-terminated, and `data` points to `size` readable bytes.
    let ret = unsafe { libc::syscall(SYS_FILE_SETATTR, dir, name, data, size, libc::AT_SYMLINK_NOFOLLOW) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The superblock's features, `XFS_IOC_FSGEOMETRY_V1`. XFS only.
pub(crate) fn xfs_geometry(fd: BorrowedFd<'_>) -> io::Result<XfsGeometry> {
    let mut geometry = XfsGeometry::default();
    let data = ptr::from_mut(&mut geometry);
    // SAFETY: `fd` is open; the command writes one `xfs_fsop_geom_v1` to `data`, which points to a whole one.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), ioctl_number(XFS_IOC_FSGEOMETRY_V1), data) };
    if ret == 0 { Ok(geometry) } else { Err(io::Error::last_os_error()) }
}

/// Frees what a project's files have preallocated and, since Linux 5.14, waits for what the file system does about
/// deleted files in the background: `XFS_IOC_FREE_EOFBLOCKS`. XFS only; needs CAP_SYS_ADMIN.
pub(crate) fn xfs_free(fd: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let which = XfsEofblocks { version: 1, flags: XFS_EOF_FLAGS_PRID, project, ..XfsEofblocks::default() };
    let data = ptr::from_ref(&which);
    // SAFETY: `fd` is open; the command only reads one `xfs_fs_eofblocks` from `data`, which points to a whole one.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), ioctl_number(XFS_IOC_FREE_EOFBLOCKS), data) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The request type of ioctl(2) differs between C libraries.
#[allow(clippy::unnecessary_cast, clippy::cast_possible_wrap, trivial_numeric_casts)]
fn ioctl_number(opcode: Opcode) -> libc::Ioctl {
    opcode as libc::Ioctl
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// Offsets and numbers as the kernel's headers give them.
    #[test]
    fn layouts_and_numbers_are_the_kernels() {
        assert_eq!(Q_XGETQUOTA, 0x58_03_02);
        assert_eq!(Q_XGETNEXTQUOTA, 0x58_09_02);
        assert_eq!(FS_IOC_FSGETXATTR, 0x801c_581f);
        assert_eq!(FS_IOC_FSSETXATTR, 0x401c_5820);
        assert_eq!(XFS_IOC_FSGEOMETRY_V1, 0x8070_5864);
        assert_eq!(XFS_IOC_FREE_EOFBLOCKS, 0x8080_583a);
        assert_eq!(offset_of!(FsDiskQuota, bcount), 40);
        assert_eq!(offset_of!(FsDiskQuota, btimer), 60);
        assert_eq!(offset_of!(FsDiskQuota, btimer_hi), 69);
        assert_eq!(offset_of!(FsDiskQuota, rtb_hardlimit), 72);
        assert_eq!(offset_of!(FsQuotaStatv, flags), 2);
        assert_eq!(offset_of!(FsQuotaStatv, btimelimit), 80);
        assert_eq!(offset_of!(FsXattr, projid), 12);
        assert_eq!(offset_of!(XfsGeometry, flags), 92);
    }

    #[test]
    fn the_probes_touch_nothing() {
        // Either answer is fine: they must only come back.
        let _ = (has_quotactl(), has_quotactl_fd());
    }
}
