//! Disk limits for directory trees: project quota on XFS, ext4 and f2fs.
//!
//! The kernel can count blocks and inodes not only per user and group but per *project*: a number that every file
//! bears and that a directory passes on to what is made inside. A limit on the project is then a limit on the tree,
//! whoever writes to it, and `df` inside shows it as the size. This is what stands behind Docker's
//! `--storage-opt size=`.
//!
//! ```no_run
//! use quota::{Allocator, Check, Directory, Filesystem, Limits};
//! # fn main() -> Result<(), quota::Error> {
//! let filesystem = Filesystem::open("/srv/boxes")?;
//! filesystem.require(&Check::default())?; // an error that names what is missing, and the fix
//! let allocator = Allocator::open(&filesystem, "/var/lib/boxes/quota".as_ref(), Allocator::IDS)?;
//!
//! let limits = Limits::unlimited().bytes(50 << 20).inodes(10_000);
//! let lease = allocator.lease("box 7", &limits)?; // an id that is ours alone; its limits are set and read back
//! std::fs::create_dir("/srv/boxes/7").expect("a new directory");
//! lease.assign(&Directory::open("/srv/boxes/7")?)?; // everything made inside is counted and limited
//!
//! // … programs write to it …
//! if lease.project().report()?.bytes_exhausted() {
//!     println!("it reached its 50 MiB");
//! }
//! std::fs::remove_dir_all("/srv/boxes/7").expect("removed");
//! lease.release()?; // limits removed, usage checked, id free again
//! # Ok(()) }
//! ```
//!
//! # Does
//! - tells whether a directory can be limited, and for each missing precondition its name and its fix
//!   ([`Filesystem::check`]), from what the kernel answers and not from mount options;
//! - sets hard and soft limits of bytes and inodes, refuses what the kernel would bend in silence, and reads back
//!   ([`Project`], [`Limits`]);
//! - makes empty directories and existing trees belong to a project ([`Directory`]);
//! - lists all projects with the figures of `xfs_quota` and `repquota` ([`Filesystem::report`]);
//! - lends project ids without collisions, across processes and crashes ([`Allocator`]).
//!
//! # Does not
//! - mount anything, or make a file system fit;
//! - user and group quota, beyond telling their [`States`];
//! - keep a file's owner from leaving the project, below.
//!
//! # Terminology
//! - **Project**: a number from 1 to 4294967294 that inodes bear. 0 is none; on XFS the limits of 0 are the defaults
//!   of all others.
//! - **Accounting, enforcement**: usage is counted; limits act. The first can be had without the second.
//! - **Hard, soft, grace**: the hard limit acts at once, the soft one when it was exceeded for the grace time.
//! - **Inherit**: a directory's flag that makes what is created inside bear its project.
//!
//! # Caveats
//! - **Not a boundary by itself.** The owner of a file may give it another project (`chattr -p 0`), and so write
//!   without limit; the kernel refuses only inside a user namespace. Run the limited program in one, or deny it
//!   `FS_IOC_FSSETXATTR` and file_setattr(2) by seccomp.
//! - **Privilege.** On ext4 and f2fs CAP_SYS_RESOURCE in the initial user namespace passes all limits, except through
//!   an overlay. On XFS nobody passes them.
//! - **The errno at the limit** is `ENOSPC` on XFS and `EDQUOT` on ext4 and f2fs, for writes, new files, directories
//!   and preallocation alike; a store into a hole of a mapped file is `SIGBUS`. Ask
//!   [`Report::bytes_exhausted`] whether it was the project or the disk.
//! - **Nearly full is full for new files on XFS.** It refuses what might not fit in the worst case: a new file, directory
//!   or link below 47 free blocks (188 KiB), an extended attribute below 18, fallocate(2) below 5. Writing goes on to the
//!   last block. So a limit of less than 200 KiB allows no file at all; [`Report::new_files_refused`].
//! - **A full project can refuse deletion.** On an overlay, removing a file of the lower layer makes a whiteout in the
//!   upper one, which takes an inode and perhaps a block: `ENOSPC`. Removing files of the upper layer works; so leave
//!   a few inodes and blocks of room, or raise the limit to clean up.
//! - **Overlay.** Assign one directory and make upper *and* work inside it. With work outside of the project the mount
//!   succeeds, and every copy-up and removal then fails with `EXDEV`.
//! - **Root and system projects.** Only root of the initial user namespace sees or sets limits; anybody may read
//!   [`States`] and a directory's [`Tag`].
//!
//! # Kernel features
//! | Feature | Minimum kernel | Used for | Without |
//! |---|---|---|---|
//! | project quota on XFS / ext4 / f2fs | 2.6 / 4.5 / 4.14 | everything | named by [`Filesystem::check`] |
//! | `FS_IOC_FSGETXATTR` for all file systems | 4.5 | tags | none |
//! | `Q_XGETNEXTQUOTA` | 4.6 | [`Filesystem::report`], [`Allocator::recover`] | none |
//! | `XFS_IOC_FREE_EOFBLOCKS` | 3.8, XFS | exact usage at [`Lease::release`] and [`Allocator::recover`] | none |
//! | quotactl_fd(2) | 5.14 | calls without a device node | a node, if need be in a tmpfs mounted nowhere |
//! | file_setattr(2) | 6.17, XFS | projects of existing links and special files | named in [`Retagged::left`] |

mod allocator;
mod check;
mod directory;
mod error;
mod filesystem;
mod kernel;
mod limits;
mod mount;
mod names;
mod project;
mod record;
mod registry;
mod sys;

pub use allocator::{Allocator, Lease, Quarantined, Recovered, Released};
pub use check::{Check, Problem, Purpose};
pub use directory::{Directory, Left, Retagged, Tag};
pub use error::Error;
pub use filesystem::{Access, Features, Filesystem, Kind, State, States};
pub use kernel::{Kernel, KernelCheck};
pub use limits::{Grace, Limit, Limits, Report, Usage};
pub use names::{Ignored, Names};
pub use project::Project;
