//! Maps between the ids inside a user namespace and those outside, and the kernel's rules for them.

use std::fmt::{self, Write as _};

use crate::Error;

/// The most lines that a map may have (user_namespaces(7); 5 before Linux 4.15).
pub const MAX_EXTENTS: usize = 340;

/// No user or group: the kernel's `(uid_t) -1`.
const NO_ID: u32 = u32::MAX;

/// Consecutive ids: `count` of them from `base` on. Never empty, never reaching the id 4294967295, which is nobody's.
///
/// Shown as `first..=last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    base: u32,
    count: u32,
}

impl Range {
    /// The `count` ids from `base` on.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `count` is 0 or the last id is 4294967295 or beyond.
    pub fn new(base: u32, count: u32) -> Result<Self, Error> {
        let what = || format!("the id range of {count} from {base}");
        if count == 0 {
            return Err(Error::invalid(what(), "it holds no id"));
        }
        if u64::from(base) + u64::from(count) > u64::from(NO_ID) {
            return Err(Error::invalid(what(), "ids end at 4294967294"));
        }
        Ok(Self { base, count })
    }

    /// The first id.
    #[must_use]
    pub const fn base(self) -> u32 {
        self.base
    }

    /// How many ids, at least 1.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.count
    }

    /// The last id.
    #[must_use]
    pub const fn last(self) -> u32 {
        self.base + (self.count - 1)
    }

    /// Whether `id` is one of them.
    #[must_use]
    pub const fn contains(self, id: u32) -> bool {
        self.base <= id && id <= self.last()
    }

    /// Whether all of `other` is in this range.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        self.contains(other.base) && self.contains(other.last())
    }

    /// Whether the two share an id.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.base <= other.last() && other.base <= self.last()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.base, self.last())
    }
}

/// One line of a map: `count` ids from `inside` on are `outside` and following outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs)] // The kernel's line has these three numbers.
pub struct Extent {
    /// The first id inside the namespace.
    pub inside: u32,
    /// The id that it is outside: in the namespace that writes or reads the map, usually the parent.
    pub outside: u32,
    /// How many ids, at least 1.
    pub count: u32,
}

impl Extent {
    /// The ids inside.
    fn inner(self) -> Range {
        Range { base: self.inside, count: self.count }
    }

    /// The ids outside.
    fn outer(self) -> Range {
        Range { base: self.outside, count: self.count }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.inside, self.outside, self.count)
    }
}

/// A user or group id map that the kernel will accept: 1 to [`MAX_EXTENTS`] extents, none empty, none reaching the id
/// 4294967295, no id twice on either side, and all of it in less than a page of text.
///
/// Shown as the text that is written to `uid_map` or `gid_map`. The order of the extents is kept: the kernel keeps it too.
/// What depends on the writer and its namespace is checked by [`write_maps`](crate::write_maps).
///
/// ```
/// use userns::{Extent, IdMap};
/// let map = IdMap::new(vec![
///     Extent { inside: 0, outside: 100_000, count: 1000 },
///     Extent { inside: 65534, outside: 200_000, count: 1 },
/// ])?;
/// assert_eq!(map.to_outside(33), Some(100_033));
/// assert_eq!(map.to_inside(200_000), Some(65534));
/// assert_eq!(map.to_inside(0), None);
/// assert_eq!(map.to_string(), "0 100000 1000\n65534 200000 1\n");
/// # Ok::<(), userns::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdMap {
    extents: Vec<Extent>,
}

impl IdMap {
    /// A map of these extents, in this order.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the first rule that is broken.
    pub fn new(extents: Vec<Extent>) -> Result<Self, Error> {
        let broken = |why: String| Err(Error::invalid("id map", why));
        if extents.is_empty() {
            return broken("it has no extent; the kernel takes no empty map".into());
        }
        if extents.len() > MAX_EXTENTS {
            return broken(format!("it has {} extents; the kernel takes {MAX_EXTENTS}", extents.len()));
        }
        for extent in &extents {
            if extent.count == 0 {
                return broken(format!("the extent `{extent}` maps no id"));
            }
            for (side, first) in [("inside", extent.inside), ("outside", extent.outside)] {
                if u64::from(first) + u64::from(extent.count) > u64::from(NO_ID) {
                    return broken(format!("the extent `{extent}` reaches beyond the last id, 4294967294, {side}"));
                }
            }
        }
        for (side, of) in [("inside", Extent::inner as fn(Extent) -> Range), ("outside", Extent::outer)] {
            let mut sorted = extents.clone();
            sorted.sort_by_key(|&extent| of(extent));
            for pair in sorted.windows(2) {
                if let &[a, b] = pair {
                    if of(a).overlaps(of(b)) {
                        return broken(format!("the extents `{a}` and `{b}` overlap {side}"));
                    }
                }
            }
        }
        let map = Self { extents };
        let (length, page) = (map.to_string().len(), rustix::param::page_size());
        if length >= page {
            return broken(format!("its text has {length} bytes; the kernel takes less than a page, {page}"));
        }
        Ok(map)
    }

    /// The map of one id: what a caller without privilege may write for its own id.
    ///
    /// # Errors
    /// [`Error::Invalid`] when one of them is 4294967295, which is nobody's id.
    pub fn single(inside: u32, outside: u32) -> Result<Self, Error> {
        Self::new(vec![Extent { inside, outside, count: 1 }])
    }

    /// The map of `range` to the same number of ids from 0 on.
    #[must_use]
    pub fn of_range(range: Range) -> Self {
        Self { extents: vec![Extent { inside: 0, outside: range.base, count: range.count }] }
    }

    /// Extents that are known to keep the rules.
    pub(crate) fn of_extents(extents: Vec<Extent>) -> Self {
        Self { extents }
    }

    /// Reads text as the kernel reads it when it is written to `uid_map`: decimal numbers between any white space, the
    /// final newline optional, nothing after a NUL byte. One difference, on purpose: a number past 32 bits is an error
    /// here, while the kernel cuts it off (`0 4294968296 1` maps 1000).
    ///
    /// # Errors
    /// [`Error::Invalid`] for every text that the kernel answers with `EINVAL`, and for such numbers.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let page = rustix::param::page_size();
        if text.len() >= page {
            return Err(Error::invalid(
                "id map",
                format!("its text has {} bytes; the kernel takes less than a page, {page}", text.len()),
            ));
        }
        let text = text.split('\0').next().unwrap_or_default();
        let text = text.strip_suffix('\n').unwrap_or(text);
        let extents = text.split('\n').map(parse_extent).collect::<Result<_, _>>()?;
        Self::new(extents)
    }

    /// The extents, in the order of the map's text.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// What the inside id `id` is outside; `None` when it is not mapped.
    #[must_use]
    pub fn to_outside(&self, id: u32) -> Option<u32> {
        self.extents.iter().find(|e| e.inner().contains(id)).map(|e| e.outside + (id - e.inside))
    }

    /// What the outside id `id` is inside; `None` when it is not mapped (shown inside as 65534).
    #[must_use]
    pub fn to_inside(&self, id: u32) -> Option<u32> {
        self.extents.iter().find(|e| e.outer().contains(id)).map(|e| e.inside + (id - e.outside))
    }

    /// Whether some outside id of the map lies in `range`.
    #[must_use]
    pub fn uses(&self, range: Range) -> bool {
        self.extents.iter().any(|e| e.outer().overlaps(range))
    }

    /// The map of a nested namespace seen from outside ours: `self` maps it to our ids, `parent` maps ours outside.
    ///
    /// # Errors
    /// [`Error::Invalid`] when an id that `self` uses is not mapped in `parent`, or too many extents result.
    pub fn compose(&self, parent: &Self) -> Result<Self, Error> {
        let mut extents = Vec::new();
        for piece in self.split_at(parent)?.extents {
            let outside = parent.to_outside(piece.outside).ok_or_else(|| unmapped(piece))?;
            extents.push(Extent { outside, ..piece });
        }
        Self::new(extents)
    }

    /// The same map, each extent cut where its outside ids cross from one extent of the parent namespace's map into
    /// another: the kernel wants each extent within one of the parent's.
    ///
    /// `parent` maps the ids of the parent namespace to those of its own parent, as `/proc/self/uid_map` shows them.
    ///
    /// # Errors
    /// [`Error::Invalid`] when an id is not mapped in `parent`, or too many extents result.
    pub fn split_at(&self, parent: &Self) -> Result<Self, Error> {
        let mut extents = Vec::new();
        for &extent in &self.extents {
            let mut rest = extent;
            loop {
                let within =
                    parent.extents.iter().find(|p| p.inner().contains(rest.outside)).ok_or_else(|| unmapped(rest))?;
                let fit = within.inner().last() - rest.outside + 1;
                if fit >= rest.count {
                    extents.push(rest);
                    break;
                }
                extents.push(Extent { count: fit, ..rest });
                rest = Extent { inside: rest.inside + fit, outside: rest.outside + fit, count: rest.count - fit };
            }
        }
        Self::new(extents)
    }

    /// The map the other way round: inside and outside change places.
    #[must_use]
    pub fn invert(&self) -> Self {
        let swap = |e: &Extent| Extent { inside: e.outside, outside: e.inside, count: e.count };
        Self { extents: self.extents.iter().map(swap).collect() }
    }

    /// Whether the two say the same of every id, however they are cut into extents.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.merged() == other.merged()
    }

    /// The extents by inside id, neighbours joined where both sides continue.
    fn merged(&self) -> Vec<Extent> {
        let mut sorted = self.extents.clone();
        sorted.sort_by_key(|e| e.inside);
        let mut merged: Vec<Extent> = Vec::with_capacity(sorted.len());
        for extent in sorted {
            match merged.last_mut() {
                Some(last)
                    if last.inside + last.count == extent.inside && last.outside + last.count == extent.outside =>
                {
                    last.count += extent.count;
                }
                _ => merged.push(extent),
            }
        }
        merged
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for extent in &self.extents {
            write!(f, "{extent}")?;
            f.write_char('\n')?;
        }
        Ok(())
    }
}

fn unmapped(extent: Extent) -> Error {
    Error::invalid(
        "id map",
        format!("the id {} of the extent `{extent}` is not mapped in the parent namespace", extent.outside),
    )
}

/// One line; white space is what the kernel's isspace() takes (0xa0 too, but that is no character of its own here).
fn parse_extent(line: &str) -> Result<Extent, Error> {
    let bad = |why: &str| Error::invalid("id map", format!("the line {:?} {why}", crate::text::shorten(line)));
    let mut fields = line.split([' ', '\t', '\r', '\x0b', '\x0c']).filter(|field| !field.is_empty());
    let mut number = || {
        let field = fields.next().ok_or_else(|| bad("has not three numbers"))?;
        if !field.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad("holds something other than decimal numbers"));
        }
        field
            .parse::<u32>()
            .map_err(|_| bad("holds a number beyond 32 bits, of which the kernel would take the low part"))
    };
    let extent = Extent { inside: number()?, outside: number()?, count: number()? };
    match fields.next() {
        None => Ok(extent),
        Some(_) => Err(bad("has more than three numbers")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(extents: &[(u32, u32, u32)]) -> Result<IdMap, Error> {
        IdMap::new(extents.iter().map(|&(inside, outside, count)| Extent { inside, outside, count }).collect())
    }

    fn refusal(extents: &[(u32, u32, u32)]) -> String {
        map(extents).unwrap_err().to_string()
    }

    #[test]
    fn each_rule_is_named() {
        assert_eq!(refusal(&[]), "id map: it has no extent; the kernel takes no empty map");
        assert_eq!(refusal(&[(0, 5, 0)]), "id map: the extent `0 5 0` maps no id");
        let beyond = "id map: the extent `0 4294967290 10` reaches beyond the last id, 4294967294, outside";
        assert_eq!(refusal(&[(0, 4_294_967_290, 10)]), beyond);
        assert!(refusal(&[(u32::MAX, 0, 1)]).ends_with("inside"));
        assert_eq!(refusal(&[(0, 10, 5), (20, 14, 5)]), "id map: the extents `0 10 5` and `20 14 5` overlap outside");
        assert_eq!(refusal(&[(0, 10, 5), (4, 100, 5)]), "id map: the extents `0 10 5` and `4 100 5` overlap inside");
        let many: Vec<_> = (0..341).map(|n| (n, n, 1)).collect();
        assert_eq!(refusal(&many), "id map: it has 341 extents; the kernel takes 340");
        assert!(map(&many[..340]).is_ok());
        let long: Vec<_> = (0..340).map(|n| (n, 100_000 + n, 1)).collect();
        assert!(refusal(&long).starts_with("id map: its text has 4310 bytes"), "{}", refusal(&long));
    }

    #[test]
    fn the_largest_map_is_the_whole_id_space() {
        let whole = map(&[(0, 0, u32::MAX)]).unwrap();
        assert_eq!(whole.to_outside(u32::MAX - 1), Some(u32::MAX - 1));
        assert_eq!(whole.to_outside(u32::MAX), None);
    }

    #[test]
    fn a_number_past_32_bits_is_never_cut_off() {
        let error = IdMap::parse("0 4294968296 1").unwrap_err().to_string();
        assert!(error.contains("beyond 32 bits"), "{error}");
    }

    #[test]
    fn an_extent_is_cut_where_the_parents_are() {
        let parent = map(&[(0, 1000, 1), (1, 100_000, 65536)]).unwrap();
        let wanted = map(&[(0, 0, 100)]).unwrap();
        assert_eq!(wanted.split_at(&parent).unwrap().to_string(), "0 0 1\n1 1 99\n");
        assert_eq!(wanted.compose(&parent).unwrap().to_string(), "0 1000 1\n1 100000 99\n");
        let error = map(&[(0, 65536, 2)]).unwrap().split_at(&parent).unwrap_err().to_string();
        assert_eq!(error, "id map: the id 65537 of the extent `1 65537 1` is not mapped in the parent namespace");
    }

    #[test]
    fn a_range_ends_where_ids_end() {
        assert!(Range::new(5, 0).is_err());
        assert!(Range::new(u32::MAX, 1).is_err());
        assert_eq!(Range::new(0, u32::MAX).unwrap().last(), u32::MAX - 1);
        assert!(Range::new(10, 5).unwrap().overlaps(Range::new(14, 1).unwrap()));
        assert!(!Range::new(10, 5).unwrap().overlaps(Range::new(15, 1).unwrap()));
    }

    /// A map of up to 12 extents with gaps, its two sides in different orders.
    fn maps() -> impl Strategy<Value = IdMap> {
        prop::collection::vec((1..5000_u32, 0..3000_u32, 0..3000_u32, any::<u32>()), 1..12).prop_map(|pieces| {
            let (mut inside, mut extents) = (0, Vec::new());
            for &(count, gap, ..) in &pieces {
                extents.push(Extent { inside: inside + gap, outside: 0, count });
                inside += gap + count;
            }
            let mut order: Vec<usize> = (0..pieces.len()).collect();
            order.sort_by_key(|&n| pieces[n].3);
            let mut outside = 0;
            for n in order {
                outside += pieces[n].2;
                extents[n].outside = outside;
                outside += pieces[n].0;
            }
            IdMap::new(extents).unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_map_and_its_inverse_undo_each_other(map in maps(), id in 0..100_000_u32) {
            prop_assert_eq!(map.to_outside(id), map.invert().to_inside(id));
            if let Some(outside) = map.to_outside(id) {
                prop_assert_eq!(map.to_inside(outside), Some(id));
            }
            prop_assert_eq!(map.invert().invert(), map);
        }

        #[test]
        fn composing_is_mapping_twice(inner in maps(), id in 0..100_000_u32, parent in maps()) {
            match inner.compose(&parent) {
                Ok(both) => {
                    let twice = inner.to_outside(id).and_then(|id| parent.to_outside(id));
                    prop_assert_eq!(both.to_outside(id), twice);
                    prop_assert!(inner.split_at(&parent).unwrap().same_as(&inner));
                }
                // Only what the parent does not have keeps it from being composed.
                Err(_) => {
                    let lacks = |e: &Extent| (e.outside..=e.outer().last()).any(|id| parent.to_outside(id).is_none());
                    prop_assert!(inner.extents().iter().any(lacks));
                }
            }
        }

        #[test]
        fn text_is_read_as_it_was_written(map in maps()) {
            prop_assert_eq!(IdMap::parse(&map.to_string()).unwrap(), map);
        }

        #[test]
        fn any_text_is_a_map_or_an_error(text in "[0-9 \\t\\n\\r\\x00+x#-]{0,80}", any in any::<String>()) {
            for text in [text, any] {
                if let Ok(map) = IdMap::parse(&text) {
                    prop_assert!(map.same_as(&IdMap::parse(&map.to_string()).unwrap()));
                }
            }
        }
    }
}
