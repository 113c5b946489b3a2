//! `/proc/PID/limits`.

use crate::{Limit, Limits, Resource, Setting};

/// The limits of a process, as its `/proc/PID/limits` shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table([Option<Limits>; 16]);

impl Table {
    /// Reads the text of `/proc/PID/limits`, of any kernel: rows that it has and we do not know are skipped, rows that
    /// it lacks are `None`. `None` for the whole when no row is known.
    pub fn parse(text: &str) -> Option<Self> {
        let mut table = Self::default();
        for line in text.lines() {
            let Some(line) = line.strip_prefix("Max ") else { continue };
            let row = Resource::ALL.iter().zip(&mut table.0).find_map(|(resource, slot)| {
                let rest = line.strip_prefix(resource.proc_name())?;
                rest.starts_with(' ').then_some((slot, rest))
            });
            let Some((slot, rest)) = row else { continue };
            let mut columns = rest.split_ascii_whitespace().map(value);
            if let (Some(Some(soft)), Some(Some(hard))) = (columns.next(), columns.next()) {
                *slot = Some(Limits { soft, hard });
            }
        }
        table.0.iter().any(Option::is_some).then_some(table)
    }

    /// The limits of the calling process, by `getrlimit(2)`: works without `/proc`.
    pub fn own() -> Self {
        Self(Resource::ALL.map(|resource| Some(crate::get(resource))))
    }

    /// The limits of one resource; `None` when that kernel did not know it.
    pub fn get(&self, resource: Resource) -> Option<Limits> {
        Resource::ALL.iter().zip(self.0).find_map(|(known, limits)| (*known == resource).then_some(limits)?)
    }

    /// Replaces one row, or adds it.
    pub fn set(&mut self, resource: Resource, limits: Limits) {
        for (known, slot) in Resource::ALL.iter().zip(&mut self.0) {
            if *known == resource {
                *slot = Some(limits);
            }
        }
    }

    /// The rows, in the order of [`Resource::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = Setting> + '_ {
        let row = |(resource, limits): (Resource, Option<Limits>)| Some(Setting { resource, limits: limits? });
        Resource::ALL.into_iter().zip(self.0).filter_map(row)
    }
}

fn value(text: &str) -> Option<Limit> {
    match text {
        "unlimited" => Some(Limit::Unlimited),
        number => number.parse().ok().map(Limit::from_raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_present_table_is_whole() {
        let table = Table::parse(include_str!("../testdata/proc-limits-6.18.txt")).unwrap();
        assert_eq!(table.iter().count(), 16);
        assert_eq!(table.get(Resource::Stack).unwrap(), Limits { soft: Limit::Value(8 << 20), hard: Limit::Unlimited });
        assert_eq!(table.get(Resource::Nofile).unwrap(), Limits::both(Limit::Value(20000)));
        assert_eq!(table.get(Resource::Nice).unwrap(), Limits::both(Limit::Value(0)));
        assert_eq!(table.get(Resource::Rttime).unwrap(), Limits::UNLIMITED);
    }

    #[test]
    fn the_oldest_kernel_that_we_support_has_the_same_rows() {
        let table = Table::parse(include_str!("../testdata/proc-limits-5.10.txt")).unwrap();
        assert_eq!(table.iter().count(), 16);
        assert_eq!(table.get(Resource::Memlock), Some(Limits::both(Limit::Value(64 << 10))));
    }

    #[test]
    fn an_old_table_lacks_a_row_and_has_another_unit() {
        // Linux 2.6.24: CPU time in ms, no real-time timeout.
        let old = "Limit                     Soft Limit           Hard Limit           Units     \n\
                   Max cpu time              unlimited            unlimited            ms        \n\
                   Max open files            1024                 4096                 files     \n\
                   Max something new         1                    2                    things    \n";
        let table = Table::parse(old).unwrap();
        assert_eq!(table.get(Resource::Cpu), Some(Limits::UNLIMITED));
        assert_eq!(table.get(Resource::Rttime), None);
        assert_eq!(table.iter().count(), 2);
    }

    #[test]
    fn what_is_no_table_is_none() {
        for text in
            ["", "Max open files", "Max open filesx 1 2\n", "Max open files 1\n", "Max open files a b\n", "\0\n"]
        {
            assert_eq!(Table::parse(text), None, "{text:?}");
        }
    }
}
