//! The compiled program, run by a small machine of our own, against the table read rule by rule.

use std::ops::RangeInclusive;

use proptest::prelude::*;

use super::super::syscalls::{self, arch, number};
use super::*;

const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;

/// `struct seccomp_data`.
#[derive(Clone, Copy, Debug)]
struct Call {
    nr: u32,
    arch: u32,
    args: [u64; 6],
}

impl Call {
    fn native(nr: u32, args: [u64; 6]) -> Self {
        Self { nr, arch: arch::AUDIT_ARCH, args }
    }

    fn encode(&self) -> Vec<u8> {
        let mut data = [self.nr.to_ne_bytes(), self.arch.to_ne_bytes(), [0; 4], [0; 4]].concat();
        data.extend(self.args.iter().flat_map(|argument| argument.to_ne_bytes()));
        data
    }
}

fn decode(program: &Program) -> Vec<Instruction> {
    let chunks = program.as_bytes().chunks_exact(Instruction::SIZE);
    assert!(chunks.remainder().is_empty() && chunks.len() == usize::from(program.len()));
    let decode = |bytes: &[u8]| Instruction {
        code: u16::from_ne_bytes(bytes[0..2].try_into().unwrap()),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_ne_bytes(bytes[4..8].try_into().unwrap()),
    };
    chunks.map(decode).collect()
}

/// Runs the program. Returns what it returns and after how many instructions.
fn run(program: &[Instruction], call: &Call) -> (u32, usize) {
    let data = call.encode();
    let (mut accumulator, mut pc) = (0_u32, 0_usize);
    for steps in 1.. {
        let Instruction { code, jt, jf, k } = program[pc];
        pc += 1;
        let mut jump = |holds: bool| pc += usize::from(if holds { jt } else { jf });
        match code {
            LOAD => {
                let at = usize::try_from(k).unwrap();
                assert!(at % 4 == 0, "unaligned load");
                accumulator = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
            }
            JA => pc += usize::try_from(k).unwrap(),
            JEQ => jump(accumulator == k),
            JGE => jump(accumulator >= k),
            JSET => jump(accumulator & k != 0),
            RETURN => return (k, steps),
            _ => panic!("unknown instruction {code:#x}"),
        }
    }
    unreachable!()
}

/// The table as its reader understands it.
fn expected(table: &Table, call: &Call) -> u32 {
    if call.arch != table.audit_arch {
        return Action::KillProcess.value().unwrap();
    }
    let rule = table.rules.iter().find(|rule| rule.numbers.contains(&call.nr));
    let mut decision = rule.map_or(&table.otherwise, |rule| &rule.decision);
    loop {
        match decision {
            Decision::Final(action) => return action.value().unwrap(),
            Decision::Inspect { word, cases, otherwise } => {
                let (argument, shift) = match word {
                    Word::Low(argument) => (argument, 0),
                    Word::High(argument) => (argument, 32),
                };
                let argument = call.args[usize::try_from(argument.index()).unwrap()];
                let word = u32::try_from((argument >> shift) & 0xffff_ffff).unwrap();
                let holds = |test: &Test| match *test {
                    Test::Is(value) => word == value,
                    Test::HasAny(mask) => word & mask != 0,
                };
                decision = cases.iter().find(|(test, _)| holds(test)).map_or(otherwise, |(_, decision)| decision);
            }
        }
    }
}

/// Values at which something changes in the default table, in either half.
fn telling_arguments() -> Vec<u64> {
    let words = [
        0,
        1,
        2,
        3,
        10,
        16,
        17,
        38,
        40,
        132,
        0x80,
        0x100,
        0x5411,
        0x5412,
        0x5413,
        0x541c,
        0x541d,
        0x401c_5820,
        0x0002_0000,
        0x0004_0000,
        0x0200_0000,
        0x0400_0000,
        0x0800_0000,
        0x1000_0000,
        0x2000_0000,
        0x4000_0000,
        0x8000_0000,
        0xffff_ffff,
    ];
    words.iter().flat_map(|&low| [0, 1, 0xffff_ffff].map(|high: u64| high << 32 | low)).collect()
}

fn all_options() -> [Options; 4] {
    [(false, false), (false, true), (true, false), (true, true)]
        .map(|(single_id, strict)| Options { single_id, strict })
}

/// The walk of the kernel at attach time: whether it can see that the call is allowed whatever its arguments.
fn walk_sees_allow(program: &[Instruction], nr: u32) -> bool {
    let (mut accumulator, mut pc) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[pc];
        pc += 1;
        let mut jump = |holds: bool| pc += usize::from(if holds { jt } else { jf });
        match (code, k) {
            (LOAD, OFFSET_NR) => accumulator = nr,
            (LOAD, OFFSET_ARCH) => accumulator = arch::AUDIT_ARCH,
            (LOAD, _) => return false,
            (JA, _) => pc += usize::try_from(k).unwrap(),
            (JEQ, _) => jump(accumulator == k),
            (JGE, _) => jump(accumulator >= k),
            (JSET, _) => jump(accumulator & k != 0),
            (RETURN, _) => return Ok(k) == Action::Allow.value(),
            _ => panic!("unknown instruction {code:#x}"),
        }
    }
}

#[test]
fn calls_allowed_without_a_look_skip_the_filter_for_good() {
    for options in all_options() {
        let table = syscalls::deny_list(options);
        let program = decode(&compile(&table).unwrap());
        for span in spans(&table) {
            let plain = *span.decision == Decision::Final(Action::Allow);
            for nr in span.first..=span.last.min(1000) {
                assert_eq!(walk_sees_allow(&program, nr), plain, "{nr}");
            }
        }
    }
}

#[test]
fn default_program_means_its_table_for_every_number_and_architecture() {
    let arguments = telling_arguments();
    for options in all_options() {
        let table = syscalls::deny_list(options);
        let program = decode(&deny_list(options).unwrap());
        let special = [0x3fff_ffff, 0x7fff_ffff, 0x8000_0000, 0xc000_0000, u32::MAX];
        for nr in (0..1024).flat_map(|nr| [nr, nr | X32_BIT, nr | 0x8000_0000]).chain(special) {
            for arch in [arch::AUDIT_ARCH, AUDIT_ARCH_I386, 0, u32::MAX] {
                // Where the table looks at no argument, two of them are enough to show that the program does not.
                let looks = table
                    .rules
                    .iter()
                    .any(|rule| rule.numbers.contains(&nr) && matches!(rule.decision, Decision::Inspect { .. }));
                for &argument in if looks { &arguments[..] } else { &arguments[..2] } {
                    for args in
                        [[argument; 6], [argument, 0, 0, 0, 0, 0], [0, argument, 0, 0, 0, 0], [2, 1, argument, 0, 0, 0]]
                    {
                        let call = Call { nr, arch, args };
                        assert_eq!(run(&program, &call).0, expected(&table, &call), "{options:?} {call:x?}");
                    }
                }
            }
        }
    }
}

/// The promises of the documentation, spelled out by hand: the table itself could be wrong.
#[test]
fn default_program_answers_as_documented() {
    const ALLOW: u32 = 0x7fff_0000;
    const KILL: u32 = 0x8000_0000;
    let errno = |errno: libc::c_int| 0x0005_0000 | u32::try_from(errno).unwrap();
    let (eperm, enosys, eafnosupport) = (errno(libc::EPERM), errno(libc::ENOSYS), errno(libc::EAFNOSUPPORT));
    let first = |value| [value, 0, 0, 0, 0, 0];
    let second = |value| [0, value, 0, 0, 0, 0];
    let socket = |family, kind, protocol| [family, kind, protocol, 0, 0, 0];
    let cases = [
        (libc::SYS_read, [0; 6], ALLOW),
        (libc::SYS_execve, [0; 6], ALLOW),
        (libc::SYS_seccomp, [0; 6], ALLOW),
        (libc::SYS_landlock_restrict_self, [0; 6], ALLOW),
        (libc::SYS_landlock_create_ruleset, [0; 6], ALLOW),
        (libc::SYS_adjtimex, [0; 6], ALLOW),
        (335, [0; 6], ALLOW),
        (468, [0; 6], ALLOW),
        (libc::SYS_prlimit64, first(1), ALLOW),
        (libc::SYS_clone3, [0; 6], enosys),
        (libc::SYS_io_uring_setup, [0; 6], enosys),
        (libc::SYS_keyctl, [0; 6], enosys),
        (467, [0; 6], enosys),
        (469, [0; 6], enosys),
        (337, [0; 6], enosys),
        (470, [0; 6], enosys),
        (0x3fff_ffff, [0; 6], enosys),
        (-1, [0; 6], enosys),
        (0x4000_0000, [0; 6], KILL),
        (0x4000_0000 | libc::SYS_read, [0; 6], KILL),
        (libc::SYS_ptrace, [0; 6], eperm),
        (libc::SYS_mount, [0; 6], eperm),
        (libc::SYS_clone, first(0x003d_0f00), ALLOW), // a thread of glibc
        (libc::SYS_clone, first(0x4111), ALLOW),      // vfork
        (libc::SYS_clone, first(0x1000_0011), eperm),
        (libc::SYS_clone, first(0x0002_0011), eperm),
        (libc::SYS_unshare, first(0x0000_0600), ALLOW),
        (libc::SYS_unshare, first(0x0000_0080), eperm),
        (libc::SYS_unshare, first(0x1000_0000), eperm),
        (libc::SYS_unshare, first(0x4000_0200), eperm),
        (libc::SYS_unshare, first(0x1_0000_0000), eperm),
        (libc::SYS_ioctl, second(0x5401), ALLOW),
        (libc::SYS_ioctl, second(0x5412), eperm),
        (libc::SYS_ioctl, second(0x1_0000_5412), eperm),
        (libc::SYS_ioctl, second(0xffff_ffff_401c_5820), eperm),
        (libc::SYS_ioctl, second(0x4008_6602), eperm),
        (libc::SYS_ioctl, second(0x8008_6601), ALLOW), // FS_IOC_GETFLAGS
        (libc::SYS_fcntl, second(6), ALLOW),
        (libc::SYS_flock, [0; 6], ALLOW),
        (libc::SYS_personality, first(0), ALLOW),
        (libc::SYS_personality, first(0xffff_ffff), ALLOW),
        (libc::SYS_personality, first(0x0004_0000), ALLOW),
        (libc::SYS_personality, first(0x0040_0000), eperm),
        (libc::SYS_socket, socket(1, 1, 0), ALLOW),
        (libc::SYS_socket, socket(2, 1, 6), ALLOW),
        (libc::SYS_socket, socket(10, 2, 0), ALLOW),
        (libc::SYS_socket, socket(16, 3, 0), ALLOW),
        (libc::SYS_socket, socket(16, 3, 15), eafnosupport),
        (libc::SYS_socket, socket(2, 5, 132), eafnosupport),
        (libc::SYS_socket, socket(17, 3, 0), eafnosupport),
        (libc::SYS_socket, socket(38, 5, 0), eafnosupport),
        (libc::SYS_socket, socket(40, 1, 0), eafnosupport),
        (libc::SYS_socketpair, socket(1, 1, 0), ALLOW),
        (libc::SYS_socketpair, socket(30, 1, 0), eafnosupport),
    ];
    let program = decode(&deny_list(Options::default()).unwrap());
    for (nr, args, answer) in cases {
        let call = Call::native(number(nr), args);
        assert_eq!(run(&program, &call).0, answer, "{call:x?}");
    }
    let program = decode(&deny_list(Options { single_id: true, ..Options::default() }).unwrap());
    for (pid, answer) in [(0, ALLOW), (1, eperm), (0xffff_ffff, eperm), (0x1_0000_0001, eperm)] {
        let call = Call::native(number(libc::SYS_prlimit64), first(pid));
        assert_eq!(run(&program, &call).0, answer, "{call:x?}");
    }
    let program = decode(&deny_list(Options { strict: true, ..Options::default() }).unwrap());
    let fcntl =
        [(1, ALLOW), (3, ALLOW), (5, ALLOW), (6, eperm), (38, eperm), (1024, eperm), (1030, ALLOW), (1040, eperm)];
    for (command, answer) in fcntl {
        let call = Call::native(number(libc::SYS_fcntl), second(command));
        assert_eq!(run(&program, &call).0, answer, "{call:x?}");
    }
    assert_eq!(run(&program, &Call::native(number(libc::SYS_flock), [0; 6])).0, enosys);
}

/// The numbers as the kernel's x86-64 table has them, so that no name can be lost or mean another call.
#[test]
fn default_program_refuses_exactly_these_numbers() {
    let enosys = [248, 249, 250, 310, 311, 425, 426, 427, 428, 429, 430, 431, 432, 433, 435, 442, 467, 469];
    let eperm = [
        101, 103, 153, 154, 155, 161, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 174, 175, 176, 177, 178,
        179, 180, 212, 227, 237, 246, 256, 279, 298, 300, 304, 308, 312, 313, 320, 321, 323, 438, 443,
    ];
    let eafnosupport = [41, 53]; // socket and socketpair, asked for family 0
    let expected = |nr| match nr {
        337..=423 => libc::ENOSYS,
        nr if enosys.contains(&nr) => libc::ENOSYS,
        nr if eperm.contains(&nr) => libc::EPERM,
        nr if eafnosupport.contains(&nr) => libc::EAFNOSUPPORT,
        _ => 0,
    };
    let program = decode(&deny_list(Options::default()).unwrap());
    for nr in 0..=469 {
        let found = run(&program, &Call::native(nr, [0; 6])).0;
        let action = if expected(nr) == 0 { Action::Allow } else { Action::Errno(expected(nr)) };
        assert_eq!(Ok(found), action.value(), "{nr}");
    }
}

/// What attaching costs is bounded here: the length of the program, and of the walk over all numbers.
#[test]
fn default_program_is_short_and_its_paths_are() {
    let table = syscalls::deny_list(Options { single_id: true, strict: true });
    let program = decode(&compile(&table).unwrap());
    let steps = |nr| run(&program, &Call::native(nr, [0; 6])).1;
    let (total, longest) = (0..=arch::LAST_KNOWN).map(steps).fold((0, 0), |(sum, max), n| (sum + n, max.max(n)));
    let linear: usize = 2
        + (0..=arch::LAST_KNOWN)
            .map(|nr| table.rules.iter().take_while(|rule| !rule.numbers.contains(&nr)).count())
            .sum::<usize>();
    assert!(program.len() <= 128, "{} instructions", program.len());
    assert!(longest <= 20, "{longest} steps");
    assert!(total * 3 < linear, "{total} steps against {linear} of a chain");
}

#[test]
fn equal_neighbours_are_one_span_and_the_first_rule_holds() {
    let errno = |errno| Decision::Final(Action::Errno(errno));
    let rule = |numbers: RangeInclusive<u32>, decision: Decision| Rule { numbers, decision };
    let table = Table {
        audit_arch: arch::AUDIT_ARCH,
        rules: vec![rule(5..=5, errno(1)), rule(6..=9, errno(1)), rule(0..=7, errno(2)), rule(10..=10, errno(1))],
        otherwise: Decision::Final(Action::Allow),
    };
    let spans: Vec<_> = spans(&table).iter().map(|span| (span.first, span.last, span.decision.clone())).collect();
    assert_eq!(spans, [(0, 4, errno(2)), (5, 10, errno(1)), (11, u32::MAX, Decision::Final(Action::Allow))]);
}

#[test]
fn a_table_that_does_not_fit_is_an_error() {
    let rule =
        |nr| Rule { numbers: nr..=nr, decision: Decision::Final(Action::Errno(i32::try_from(1 + nr % 3000).unwrap())) };
    let table = |rules| Table {
        audit_arch: arch::AUDIT_ARCH,
        rules: (0..rules).map(rule).collect(),
        otherwise: Decision::Final(Action::Allow),
    };
    assert!(matches!(compile(&table(5000)), Err(Error::TooLong { instructions }) if instructions > MAX_INSTRUCTIONS));
    let fits = table(1500);
    let program = decode(&compile(&fits).unwrap());
    assert!(program.iter().any(|instruction| instruction.code == JA), "no jump was too far: the test is too small");
    for nr in 0..1600 {
        let call = Call::native(nr, [0; 6]);
        assert_eq!(run(&program, &call).0, expected(&fits, &call), "{call:x?}");
    }
}

#[test]
fn an_error_number_out_of_range_is_an_error() {
    for errno in [0, -1, 4096, i32::MAX] {
        let table = Table {
            audit_arch: arch::AUDIT_ARCH,
            rules: vec![Rule { numbers: 1..=1, decision: Decision::Final(Action::Errno(errno)) }],
            otherwise: Decision::Final(Action::Allow),
        };
        assert_eq!(compile(&table), Err(Error::NotAnErrno { errno }));
    }
    assert_eq!(Error::NotAnErrno { errno: 0 }.to_string(), "0 is not an errno");
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => Just(Action::Allow),
        3 => prop::sample::select(vec![1, 38, 97]).prop_map(Action::Errno),
        1 => (1..=4095).prop_map(Action::Errno),
        1 => Just(Action::KillProcess),
    ]
}

fn decision() -> impl Strategy<Value = Decision> {
    let argument = prop::sample::select(vec![Argument::First, Argument::Second, Argument::Third]);
    let word = (argument, any::<bool>())
        .prop_map(|(argument, low)| if low { Word::Low(argument) } else { Word::High(argument) });
    // Few values and bits, so that arguments meet them.
    let test = prop_oneof![(0..8_u32).prop_map(Test::Is), (0..8_u32).prop_map(Test::HasAny)];
    let leaf = action().prop_map(Decision::Final);
    leaf.prop_recursive(3, 12, 4, move |inner| {
        (word.clone(), prop::collection::vec((test.clone(), inner.clone()), 0..4), inner)
            .prop_map(|(word, cases, otherwise)| Decision::Inspect { word, cases, otherwise: Box::new(otherwise) })
    })
}

fn table(rules: std::ops::Range<usize>) -> impl Strategy<Value = Table> {
    let numbers = prop_oneof![
        4 => (0..600_u32).prop_map(|nr| nr..=nr),
        2 => (0..600_u32, 0..40_u32).prop_map(|(nr, more)| nr..=nr + more),
        1 => (any::<u32>(), any::<u32>()).prop_map(|(a, b)| a.min(b)..=a.max(b)),
        1 => Just(X32_BIT..=u32::MAX),
    ];
    let rule = (numbers, decision()).prop_map(|(numbers, decision)| Rule { numbers, decision });
    (prop::collection::vec(rule, rules), decision()).prop_map(|(rules, otherwise)| Table {
        audit_arch: arch::AUDIT_ARCH,
        rules,
        otherwise,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_program_means_its_table(
        // Some of them so long that jumps need stepping stones.
        table in prop_oneof![9 => table(0..150), 1 => table(500..600)],
        args in prop::collection::vec(prop::array::uniform6((0..8_u64, 0..8_u64).prop_map(|(high, low)| high << 32 | low)), 4),
    ) {
        let program = match compile(&table) {
            Ok(program) => decode(&program),
            Err(error) => {
                prop_assert!(matches!(error, Error::TooLong { instructions } if instructions > MAX_INSTRUCTIONS), "{error}");
                return Ok(());
            }
        };
        let edges = table.rules.iter().flat_map(|rule| {
            let (first, last) = (*rule.numbers.start(), *rule.numbers.end());
            [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
        });
        for nr in (0..700).chain(edges) {
            for arch in [arch::AUDIT_ARCH, AUDIT_ARCH_I386] {
                for &args in &args {
                    let call = Call { nr, arch, args };
                    prop_assert_eq!(run(&program, &call).0, expected(&table, &call), "{:x?}", call);
                }
            }
        }
    }
}
