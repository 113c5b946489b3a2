//! From a table of rules to the program which the kernel runs before each system call.
//!
//! Attaching a filter is not free: for every system call number the kernel walks through the program once to learn
//! which calls are allowed whatever their arguments (these then skip the filter for good), and it translates the whole
//! program to machine code. A chain of comparisons, one per rule, makes both long. Here the numbers are first merged to
//! spans with the same decision, then found by a tree of comparisons which is balanced by how many calls lie on
//! each side:
//!
//! ```text
//!     load arch;     other than ours -> kill
//!     load number;   number >= 272 ? right half : left half
//!                    number >= 165 ? …
//!                    number == 101 ? refuse : allow            (a lone call among allowed ones)
//!     load argument; argument has any of … ? refuse : allow    (only where a rule looks at arguments)
//! ```
//!
//! The program is written from its end to its start. The target of every jump is then known when the jump is written,
//! and one which is farther than a jump's eight bits can say gets a stepping stone in between. Only instructions which
//! the kernel's walk understands are used (`seccomp_is_const_allow`: load of `nr` and `arch`, `ja`, `jeq`, `jge`,
//! `jset`, `ret`); a load of an argument ends the walk, so those calls alone run the filter each time.
//!
//! seccomp(2), Documentation/userspace-api/seccomp_filter.rst; the walk: Linux 5.11.

use std::ops::RangeInclusive;

pub(crate) use super::syscalls::Options;
use super::syscalls::{self, arch};

/// The kernel's limit (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// Compiles the default deny-list.
///
/// # Errors
/// [`Error`] if the table does not fit; with the table as it stands that cannot happen, and a test holds it so.
pub(crate) fn deny_list(options: Options) -> Result<Program, Error> {
    compile(&syscalls::deny_list(options))
}

/// A filter as the kernel takes it: an array of `struct sock_filter`, with none of the host program's pointers in it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Program(Vec<u8>);

impl Program {
    /// The instructions, eight bytes each, for `sock_fprog.filter`.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many instructions, for `sock_fprog.len`.
    pub(crate) fn len(&self) -> u16 {
        // At most `MAX_INSTRUCTIONS`, which `compile` has checked.
        u16::try_from(self.0.len() / Instruction::SIZE).unwrap_or(u16::MAX)
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({} instructions)", self.len())
    }
}

/// Why a table cannot become a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Too many rules.
    #[error("seccomp program has {instructions} instructions, the kernel takes {MAX_INSTRUCTIONS}")]
    TooLong { instructions: usize },
    /// Outside 1 to 4095, which is what a system call can return as an error.
    #[error("{errno} is not an errno")]
    NotAnErrno { errno: i32 },
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The call is made.
    Allow,
    /// The call is not made and returns this error.
    Errno(i32),
    /// The whole process dies of an uncatchable SIGSYS.
    KillProcess,
}

/// An action, or a look at the arguments first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Whatever the arguments are.
    Final(Action),
    /// The first test that holds for this word decides.
    Inspect { word: Word, cases: Vec<(Test, Decision)>, otherwise: Box<Decision> },
}

/// Half an argument register: the machine of a filter is 32 bits wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Bits 0 to 31, all that the kernel reads where the parameter is an `int`.
    Low(Argument),
    /// Bits 32 to 63.
    High(Argument),
}

/// Which argument of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    First,
    Second,
    Third,
}

/// A question about a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// The word is this value.
    Is(u32),
    /// At least one of these bits is set.
    HasAny(u32),
}

/// A decision for all calls with these numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) numbers: RangeInclusive<u32>,
    pub(crate) decision: Decision,
}

/// All rules. Of several for one number the first holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// Calls under any other architecture kill the process: their numbers mean something else.
    pub(crate) audit_arch: u32,
    pub(crate) rules: Vec<Rule>,
    /// For numbers without a rule.
    pub(crate) otherwise: Decision,
}

/// Compiles a table.
///
/// # Errors
/// [`Error::TooLong`], [`Error::NotAnErrno`].
pub(crate) fn compile(table: &Table) -> Result<Program, Error> {
    let spans = spans(table);
    let mut assembler = Assembler::default();
    let kill = assembler.decision(&Decision::Final(Action::KillProcess))?;
    let root = assembler.tree(&spans)?;
    assembler.fall_to(root)?;
    let native = assembler.push(Instruction::load(OFFSET_NR));
    assembler.branch(JEQ, table.audit_arch, native, kill)?;
    assembler.push(Instruction::load(OFFSET_ARCH));

    let instructions = assembler.reversed.len();
    if instructions > MAX_INSTRUCTIONS {
        return Err(Error::TooLong { instructions });
    }
    Ok(Program(assembler.reversed.iter().rev().flat_map(|instruction| instruction.encode()).collect()))
}

/// Numbers next to each other with the same decision.
#[derive(Clone, Copy)]
struct Span<'a> {
    first: u32,
    last: u32,
    decision: &'a Decision,
}

impl Span<'_> {
    fn is_single(&self) -> bool {
        self.first == self.last
    }

    /// How many calls of this kernel lie in it: as often does the walk at attach time come here.
    fn weight(&self) -> u32 {
        (self.last.min(arch::LAST_KNOWN) + 1).saturating_sub(self.first)
    }
}

/// All numbers from 0 to `u32::MAX`, in order, without gaps.
fn spans(table: &Table) -> Vec<Span<'_>> {
    let mut starts = vec![0];
    for rule in &table.rules {
        starts.push(*rule.numbers.start());
        starts.extend(rule.numbers.end().checked_add(1));
    }
    starts.sort_unstable();
    starts.dedup();

    let mut spans: Vec<Span<'_>> = Vec::new();
    for (index, &first) in starts.iter().enumerate() {
        let last = starts.get(index + 1).map_or(u32::MAX, |next| next - 1);
        let rule = table.rules.iter().find(|rule| rule.numbers.contains(&first));
        let decision = rule.map_or(&table.otherwise, |rule| &rule.decision);
        match spans.last_mut() {
            Some(previous) if previous.decision == decision => previous.last = last,
            _ => spans.push(Span { first, last, decision }),
        }
    }
    spans
}

/// Where `struct seccomp_data` has the number of the call, its architecture, and its six arguments.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

impl Word {
    fn offset(self) -> u32 {
        let half = if cfg!(target_endian = "little") { 0 } else { 4 };
        match self {
            Self::Low(argument) => OFFSET_ARGS + 8 * argument.index() + half,
            Self::High(argument) => OFFSET_ARGS + 8 * argument.index() + 4 - half,
        }
    }
}

impl Argument {
    fn index(self) -> u32 {
        match self {
            Self::First => 0,
            Self::Second => 1,
            Self::Third => 2,
        }
    }
}

impl Action {
    /// `SECCOMP_RET_*`.
    fn value(self) -> Result<u32, Error> {
        match self {
            Self::Allow => Ok(0x7fff_0000),
            Self::Errno(errno) => match u32::try_from(errno) {
                Ok(data @ 1..=4095) => Ok(0x0005_0000 | data),
                _ => Err(Error::NotAnErrno { errno }),
            },
            Self::KillProcess => Ok(0x8000_0000),
        }
    }
}

/// `BPF_LD|BPF_W|BPF_ABS`, `BPF_JMP|BPF_JA`, `BPF_JMP|{BPF_JEQ,BPF_JGE,BPF_JSET}|BPF_K`, `BPF_RET|BPF_K`.
const LOAD: u16 = 0x20;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    /// How many instructions to skip if the comparison holds, and if not.
    jt: u8,
    jf: u8,
    k: u32,
}

impl Instruction {
    const SIZE: usize = 8;

    fn load(offset: u32) -> Self {
        Self { code: LOAD, jt: 0, jf: 0, k: offset }
    }

    fn encode(self) -> [u8; Self::SIZE] {
        let ([c0, c1], [k0, k1, k2, k3]) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [c0, c1, self.jt, self.jf, k0, k1, k2, k3]
    }
}

/// The place of an instruction, counted from the end of the program.
type Label = usize;

/// Writes a program backwards.
#[derive(Default)]
struct Assembler {
    reversed: Vec<Instruction>,
    /// What is written already, with its nearest place: equal decisions are written once.
    written: Vec<(Decision, Label)>,
}

impl Assembler {
    /// Finds the span of the number in the accumulator and goes to its decision.
    fn tree(&mut self, spans: &[Span<'_>]) -> Result<Label, Error> {
        if let Some(around) = background(spans) {
            let mut next = self.decision(around)?;
            for span in spans.iter().rev().filter(|span| span.decision != around) {
                let decision = self.decision(span.decision)?;
                next = self.branch(JEQ, span.first, decision, next)?;
            }
            return Ok(next);
        }
        let (left, right) = spans.split_at(middle(spans));
        // Never empty; if it were, nothing decides, and that refuses.
        let Some(boundary) = right.first() else { return self.decision(&Decision::Final(Action::KillProcess)) };
        let above = self.tree(right)?;
        let below = self.tree(left)?;
        self.branch(JGE, boundary.first, above, below)
    }

    fn decision(&mut self, decision: &Decision) -> Result<Label, Error> {
        if let Some(&(_, label)) = self.written.iter().find(|(written, _)| written == decision) {
            return self.near(label);
        }
        let label = match decision {
            Decision::Final(action) => {
                let value = action.value()?;
                self.push(Instruction { code: RETURN, jt: 0, jf: 0, k: value })
            }
            Decision::Inspect { word, cases, otherwise } => {
                let mut next = self.decision(otherwise)?;
                for (test, decision) in cases.iter().rev() {
                    let decision = self.decision(decision)?;
                    next = match *test {
                        Test::Is(value) => self.branch(JEQ, value, decision, next)?,
                        Test::HasAny(mask) => self.branch(JSET, mask, decision, next)?,
                    };
                }
                self.fall_to(next)?;
                self.push(Instruction::load(word.offset()))
            }
        };
        self.written.push((decision.clone(), label));
        Ok(label)
    }

    fn branch(&mut self, code: u16, k: u32, then: Label, otherwise: Label) -> Result<Label, Error> {
        let then = self.near(then)?;
        let otherwise = self.near(otherwise)?;
        // Within reach: `near` leaves room for the one stepping stone which the second call may have added.
        let jump = |label| u8::try_from(self.distance(label)).map_err(|_| self.too_long());
        let instruction = Instruction { code, jt: jump(then)?, jf: jump(otherwise)?, k };
        Ok(self.push(instruction))
    }

    /// A place with the same effect from which the next two instructions can jump here.
    fn near(&mut self, label: Label) -> Result<Label, Error> {
        if self.distance(label) < usize::from(u8::MAX) { Ok(label) } else { self.stepping_stone(label) }
    }

    /// Lets the next instruction, which is no jump, continue at `label`.
    fn fall_to(&mut self, label: Label) -> Result<(), Error> {
        if self.distance(label) > 0 {
            self.stepping_stone(label)?;
        }
        Ok(())
    }

    /// A copy of a return, a jump to anything else.
    fn stepping_stone(&mut self, label: Label) -> Result<Label, Error> {
        let instruction = match self.reversed.get(label) {
            Some(&copy @ Instruction { code: RETURN, .. }) => copy,
            _ => {
                let k = u32::try_from(self.distance(label)).map_err(|_| self.too_long())?;
                Instruction { code: JA, jt: 0, jf: 0, k }
            }
        };
        let stone = self.push(instruction);
        for (_, written) in self.written.iter_mut().filter(|(_, written)| *written == label) {
            *written = stone;
        }
        Ok(stone)
    }

    fn push(&mut self, instruction: Instruction) -> Label {
        self.reversed.push(instruction);
        self.reversed.len() - 1
    }

    /// How many instructions the next one skips to get there.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - 1 - label
    }

    fn too_long(&self) -> Error {
        Error::TooLong { instructions: self.reversed.len() }
    }
}

/// What is left when a few lone numbers are taken out, if that is one decision: comparing these numbers one by one is
/// then shorter than cutting at both of their sides.
fn background<'a>(spans: &[Span<'a>]) -> Option<&'a Decision> {
    // Each instruction costs attaching as much as some ninety steps of the walk, so a longer chain pays for a while.
    // The optimum is flat: 0 costs some 5 µs more than 4, all from 2 to 8 lie within about 1 µs.
    const FEW: usize = 4;
    let widest = spans.iter().find(|span| !span.is_single()).or(spans.first())?.decision;
    let others = || spans.iter().filter(|span| span.decision != widest);
    (others().count() <= FEW && others().all(Span::is_single)).then_some(widest)
}

/// Where to cut: as many calls on the left as on the right, as nearly as the spans allow, and a span on each side.
fn middle(spans: &[Span<'_>]) -> usize {
    let total: u32 = spans.iter().map(Span::weight).sum();
    let lefts = spans.iter().scan(0, |sum, span| {
        *sum += span.weight();
        Some(*sum)
    });
    // Numbers that no call has weigh nothing: among equals the middle one.
    let cuts = (1..spans.len()).zip(lefts);
    cuts.min_by_key(|&(cut, left)| (left.abs_diff(total - left), cut.abs_diff(spans.len() / 2)))
        .map_or(spans.len(), |(cut, _)| cut)
}

#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod tests;
