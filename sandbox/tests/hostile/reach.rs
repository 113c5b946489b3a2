//! What is outside: processes, sockets, terminals, results.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use sandbox::{End, Network};

use crate::common::acts::{answer, say};
use crate::common::{act, ask, ask_unprotected, said, sh, text};

#[test]
fn case_45_nothing_of_the_hosts_network_is_in_reach() {
    let sandbox = crate::common::sandbox(|_| {});
    let port = TcpListener::bind("127.0.0.1:0");
    let name = format!("sandbox-test-{}", std::process::id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    if let Ok(port) = &port {
        let address = port.local_addr().unwrap();
        if ask_unprotected(&format!("connect tcp {address}"), "connect") == "connected" {
            assert_eq!(ask(&sandbox, &format!("connect tcp {address}"), "connect"), "ConnectionRefused");
            let shared = crate::common::sandbox(|b| _ = b.network(Network::Host));
            assert_eq!(
                ask(&shared, &format!("connect tcp {address}"), "connect"),
                "connected",
                "where it is asked for"
            );
        }
    }
    assert_eq!(ask_unprotected(&format!("connect abstract {name}"), "connect"), "connected");
    assert_eq!(ask(&sandbox, &format!("connect abstract {name}"), "connect"), "ConnectionRefused");
    // Cloud metadata: no packet leaves, there is no way out.
    assert_eq!(ask(&sandbox, "connect tcp 169.254.169.254:80", "connect"), "NetworkUnreachable");
    assert_eq!(text(&sh(&sandbox, "grep -c : /proc/net/dev")), "1", "loopback alone");
    drop(listener);
}

#[test]
fn the_loopback_interface_works() {
    let sandbox = crate::common::sandbox(|_| {});
    assert_eq!(ask(&sandbox, "connect self 127.0.0.1:0", "connect"), "connected");
}

/// `connect KIND WHERE`: says whether, or why not.
pub(crate) fn connect(words: &[&str]) {
    let result = match words[0] {
        "tcp" => std::net::TcpStream::connect(words[1]).map(drop),
        "self" => TcpListener::bind(words[1]).and_then(|own| std::net::TcpStream::connect(own.local_addr()?)).map(drop),
        _ => SocketAddr::from_abstract_name(words[1]).and_then(|to| UnixStream::connect_addr(&to)).map(drop),
    };
    match result.map_err(|error| error.kind()) {
        Ok(()) => say("connect", "connected"),
        Err(kind @ (ErrorKind::ConnectionRefused | ErrorKind::NetworkUnreachable)) => {
            say("connect", format!("{kind:?}"))
        }
        Err(other) => say("connect", format!("other: {other:?}")),
    }
}

#[test]
fn case_52_other_processes_and_the_kernels_secrets_are_not_in_proc() {
    let sandbox = crate::common::sandbox(|_| {});
    let other = crate::common::sleeper(&sandbox);
    let count = text(&sh(&sandbox, "ls /proc | grep -c '^[0-9]'"));
    assert!(count.parse::<u32>().unwrap() <= 5, "init, the shell and its pipe: {count}");
    let script = format!(
        "for p in {} {}; do [ -e /proc/$p ] && cat /proc/$p/comm; done | grep -c -e sleep -e hostile; \
         for f in kcore kmsg timer_list sched_debug vmallocinfo slabinfo kpagecount; do head -c 1 /proc/$f 2>/dev/null | grep -q . && echo read $f; done; \
         grep -v -c '^0000000000000000' /proc/kallsyms 2>/dev/null || true",
        std::process::id(),
        other.id().unwrap(),
    );
    let said = text(&sh(&sandbox, &script));
    assert!(said.lines().all(|line| line == "0"), "{said}");
}

#[test]
fn case_57_a_forged_result_is_not_believed() {
    let sandbox = crate::common::sandbox(|_| {});
    let output = act(&sandbox, "descriptors").output().unwrap();
    assert_eq!(said(&output.stdout, "written"), "0");
    assert_eq!((output.outcome.end, output.outcome.status.code()), (End::Exited, Some(9)), "{output:?}");
}

/// Writes an answer as init would to every descriptor that there might be, then ends otherwise.
pub(crate) fn descriptors() {
    // EXITED for the first request, with status 0.
    let mut forged = [0u8; 64];
    forged[0] = 4;
    forged[4] = 1;
    let at = i64::try_from(forged.as_ptr() as usize).unwrap();
    let written = (3..1100).filter(|fd| answer([libc::SYS_write, *fd, at, 64, 0, 0, 0]) >= 0).count();
    say("written", written);
    std::process::exit(9);
}

#[test]
fn case_10_a_working_directory_cannot_lead_out() {
    let sandbox = crate::common::sandbox(|_| {});
    for directory in ["/proc/1/cwd", "/proc/1/root", "/proc/self/fd/3", "/proc/1/fd/3", "/proc/1/task/1/cwd"] {
        let error = sandbox.command("/bin/true").current_dir(directory).status().unwrap_err();
        assert!(error.errno().is_some() && error.to_string().contains(directory), "{error}");
    }
    let up = "/tmp".to_owned() + &"/..".repeat(50);
    assert_eq!(text(&sandbox.command("/bin/pwd").current_dir(up).output().unwrap()), "/");
}

#[test]
fn case_50_two_sandboxes_share_no_memory_file_and_no_queue() {
    let sandbox = crate::common::sandbox(|_| {});
    let first = sandbox.start().unwrap();
    let second = sandbox.start().unwrap();
    let make = "echo word > /dev/shm/word; echo word > /tmp/word; ipcmk -Q >/dev/null 2>&1; ipcmk -M 4096 >/dev/null 2>&1; wc -l < /proc/sysvipc/msg; wc -l < /proc/sysvipc/shm; hostname";
    let look = "ls -A /dev/shm /tmp; wc -l < /proc/sysvipc/msg; wc -l < /proc/sysvipc/shm; hostname";
    let run = |instance: &sandbox::Instance, script: &str| {
        text(&instance.command("/bin/sh").args(["-c", script]).output().unwrap())
    };
    assert_eq!(run(&first, make), "2\n2\nsandbox");
    assert_eq!(run(&second, look), "/dev/shm:\n\n/tmp:\n1\n1\nsandbox");
}
