//! What cannot be executed, or not be set up, is told apart, named with its errno, and leaves nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fs;

use common::{Scratch, sh, text};
use sandbox::{Error, ErrorKind, ProgramCause, Sandbox};

#[test]
fn payload() {
    common::acts::run(&[]);
}

/// A sandbox that sees the files of the tests below at `/files`.
fn files(scratch: &Scratch) -> Sandbox {
    let directory = scratch.dir("files", 0o755);
    scratch.program("files/no-interpreter", b"#!/no/such/interpreter\n", 0o755);
    scratch.program("files/not-executable", b"#!/bin/sh\n", 0o644);
    scratch.program("files/unknown-format", b"plain words\n", 0o755);
    scratch.program("files/script", b"#!/bin/sh\necho \"$0 $1\"\n", 0o755);
    // An ELF file whose loader is not there.
    let mut elf = fs::read("/bin/true").unwrap();
    let loader = b"/lib64/ld-linux-x86-64.so.2\0";
    if let Some(at) = elf.windows(loader.len()).position(|window| window == loader) {
        elf[at + 1] = b'x';
    }
    scratch.program("files/no-loader", &elf, 0o755);
    common::sandbox(|b| _ = b.bind_read_only(directory, "/files"))
}

fn refused(sandbox: &Sandbox, program: &str) -> (ErrorKind, Option<i32>, String) {
    let spawned = sandbox.command(program).spawn().unwrap_err();
    let waited = sandbox.command(program).status().unwrap_err();
    assert_eq!(spawned.to_string(), waited.to_string(), "both ways say the same");
    assert_eq!(sandbox.command(program).output().unwrap_err().kind(), spawned.kind());
    assert_eq!(spawned.step(), Some("execute"));
    (spawned.kind(), spawned.errno(), spawned.to_string())
}

#[test]
fn case_82_six_ways_in_which_a_program_is_not_executed() {
    let scratch = Scratch::new("exec");
    let sandbox = files(&scratch);
    for (program, kind, errno) in [
        ("/files/missing", ErrorKind::ProgramNotFound, libc::ENOENT),
        ("missing-by-name", ErrorKind::ProgramNotFound, libc::ENOENT),
        ("/files/script/below-a-file", ErrorKind::ProgramNotFound, libc::ENOTDIR),
        ("/files/no-interpreter", ErrorKind::InterpreterNotFound, libc::ENOENT),
        ("/files/no-loader", ErrorKind::InterpreterNotFound, libc::ENOENT),
        ("/files", ErrorKind::ProgramIsADirectory, libc::EISDIR),
        ("/files/not-executable", ErrorKind::ProgramNotExecutable, libc::EACCES),
        ("/files/unknown-format", ErrorKind::UnknownFormat, libc::ENOEXEC),
    ] {
        let (found, number, words) = refused(&sandbox, program);
        assert_eq!((found, number), (kind, Some(errno)), "{program}: {words}");
        assert!(words.contains(program), "{words}");
    }
    let long = "x".repeat(120 << 10);
    let mut command = sandbox.command("/bin/true");
    command.args((0..80).map(|_| &long));
    let error = command.status().unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::ArgumentsTooLong, Some(libc::E2BIG)), "{error}");
    assert_eq!(sandbox.close(), []);
    common::nothing_is_left_of(std::process::id());
}

#[test]
fn the_interpreter_has_a_hint() {
    let scratch = Scratch::new("hint");
    let error = files(&scratch).command("/files/no-interpreter").status().unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("interpreter")), "{error}");
    assert!(matches!(error, Error::Program { cause: ProgramCause::InterpreterNotFound, .. }));
}

#[test]
fn programs_are_found_by_name_and_scripts_by_their_first_line() {
    let scratch = Scratch::new("found");
    let sandbox = files(&scratch);
    assert_eq!(
        text(&sandbox.command("script").env("PATH", "/nowhere:/files").arg("one").output().unwrap()),
        "/files/script one"
    );
    assert_eq!(text(&sandbox.command("./script").current_dir("/files").arg("two").output().unwrap()), "./script two");
    assert_eq!(text(&sandbox.command("echo").arg("three").output().unwrap()), "three");
}

#[test]
fn many_arguments_arrive() {
    let sandbox = common::sandbox(|_| {});
    // More than a message may hold: 1 MiB.
    let word = "y".repeat(100 << 10);
    let mut command = sandbox.command("/bin/sh");
    command.args(["-c", "echo $# ${#1} ${#10}", "sh"]).args((0..10).map(|_| &word));
    assert_eq!(text(&command.output().unwrap()), "10 102400 102400");
}

#[test]
fn a_missing_working_directory_is_named() {
    let sandbox = common::sandbox(|_| {});
    let error = sandbox.command("/bin/true").current_dir("/no/such/place").status().unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Setup, Some(libc::ENOENT)), "{error}");
    assert!(error.to_string().contains("working directory") && error.to_string().contains("/no/such/place"), "{error}");
}

#[test]
fn a_failing_step_names_itself_its_path_and_its_errno() {
    let scratch = Scratch::new("step");
    let error = common::build(|b| _ = b.bind("/no/such/source", "/x")).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Setup, Some(libc::ENOENT)), "{error}");
    assert_eq!(error.path().unwrap().to_str(), Some("/no/such/source"));
    assert!(error.to_string().starts_with("cannot bind /no/such/source: No such file"), "{error}");

    // A step of the child: a mount point below a file.
    let file = scratch.file("plain", "", 0o644);
    let built = common::build(|b| {
        b.bind_read_only(&file, "/plain").bind_read_only("/usr", "/plain/below");
    });
    let error = built.and_then(|sandbox| sandbox.command("/bin/true").status()).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Setup, Some(libc::ENOTDIR)), "{error}");
    assert_eq!(error.path().unwrap().to_str(), Some("/plain/below"), "{error}");
    assert!(error.step().is_some_and(|step| !step.is_empty()));
    common::nothing_is_left_of(std::process::id());
}

#[test]
fn case_5_a_source_exchanged_since_the_build_is_refused() {
    let scratch = Scratch::new("exchange");
    let source = scratch.dir("source", 0o755);
    scratch.file("source/word", "first", 0o644);
    let sandbox = common::sandbox(|b| {
        // Below a private mount, so that it is bound at each start.
        b.bind_read_only(&source, "/tmp/source");
    });
    assert_eq!(text(&sh(&sandbox, "cat /tmp/source/word")), "first");
    fs::rename(&source, scratch.0.join("old")).unwrap();
    scratch.dir("source", 0o755);
    scratch.file("source/word", "second", 0o644);
    // Instances that were ready have the first; none has the second.
    let mut read = sandbox.command("cat");
    read.arg("/tmp/source/word");
    let mut answers = (0..=common::prepared()).map(|_| read.output());
    let error = answers.find_map(|answer| answer.map(|output| assert_eq!(text(&output), "first")).err()).unwrap();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Setup, Some(libc::ESTALE)), "{error}");
    assert!(error.path().unwrap().ends_with("source") && error.hint().is_some(), "{error}");
}
