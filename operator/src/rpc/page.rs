//! Paging by limit and offset.

use crate::status::Refused;

/// Rows of a page at most, and when the request names no limit.
pub(super) const MAX_PAGE: i64 = 100;

/// One page of a list in a stable order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    limit: i64,
    offset: i64,
}

impl Page {
    /// From the wire: no limit, or more than [`MAX_PAGE`], is [`MAX_PAGE`].
    pub(super) fn parse(limit: i64, offset: i64) -> Result<Self, Refused> {
        if limit < 0 {
            return Err(Refused::field("limit", "must not be negative"));
        }
        if offset < 0 || offset > i64::from(i32::MAX) {
            return Err(Refused::field("offset", "must be 0 to 2147483647"));
        }
        Ok(Self { limit: if limit == 0 { MAX_PAGE } else { limit.min(MAX_PAGE) }, offset })
    }

    /// Rows to skip.
    pub(super) const fn offset(self) -> i64 {
        self.offset
    }

    /// Rows of the page.
    pub(super) const fn limit(self) -> i64 {
        self.limit
    }

    /// Rows to ask the database for: one more than the page holds tells whether there is another.
    pub(super) const fn fetch(self) -> i64 {
        self.limit + 1
    }

    /// The rows of the page, and the next offset: −1 where the list ends.
    pub(super) fn cut<T>(self, mut rows: Vec<T>) -> (Vec<T>, i64) {
        let limit = usize::try_from(self.limit).unwrap_or(0);
        let next = if rows.len() > limit { self.offset.saturating_add(self.limit) } else { -1 };
        rows.truncate(limit);
        (rows, next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits() {
        assert_eq!(Page::parse(0, 0).unwrap().fetch(), MAX_PAGE + 1);
        assert_eq!(Page::parse(1_000_000, 0).unwrap().fetch(), MAX_PAGE + 1);
        assert_eq!(Page::parse(7, 0).unwrap().fetch(), 8);
        assert!(Page::parse(-1, 0).is_err());
        assert!(Page::parse(1, -1).is_err());
        assert!(Page::parse(1, i64::MAX).is_err());
    }

    proptest! {
        /// Following the offsets yields every row once and in order, and ends with −1.
        #[test]
        fn offsets_visit_every_row_once(rows in 0usize..350, limit in 0i64..130) {
            let all: Vec<usize> = (0..rows).collect();
            let (mut offset, mut seen, mut pages) = (0, Vec::new(), 0);
            while offset >= 0 {
                let page = Page::parse(limit, offset).unwrap();
                let from = usize::try_from(page.offset()).unwrap().min(rows);
                let to = (from + usize::try_from(page.fetch()).unwrap()).min(rows);
                let (got, next) = page.cut(all[from..to].to_vec());
                seen.extend(got);
                offset = next;
                pages += 1;
                prop_assert!(pages <= 351);
            }
            prop_assert_eq!(seen, all);
        }
    }
}
