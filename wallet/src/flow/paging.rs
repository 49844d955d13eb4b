//! Bounds on what one operator may list: each of them can hold back or pad its answers.

use std::time::{Duration, Instant};

use crate::client::{ClientError, Operator};

/// Rows per page that are asked for.
pub(super) const PAGE: i64 = 100;
/// Pages of one list: a hundred thousand rows.
const MAX_PAGES: u32 = 1000;
/// Bytes of one list.
const MAX_BYTES: usize = 256 << 20;
/// Deadlines of single calls that a whole list may take.
const MAX_DEADLINES: u32 = 10;

/// Where a list stands.
#[derive(Debug)]
pub(super) struct Paging<'a> {
    operator: &'a Operator,
    end: Instant,
    pages: u32,
    bytes: usize,
    offset: i64,
}

impl<'a> Paging<'a> {
    pub(super) fn of(operator: &'a Operator) -> Self {
        let most = operator.deadline().saturating_mul(MAX_DEADLINES);
        let now = Instant::now();
        let end = now.checked_add(most).unwrap_or_else(|| now + Duration::from_secs(3600));
        Self { operator, end, pages: 0, bytes: 0, offset: 0 }
    }

    /// Offset of the page to ask for.
    pub(super) const fn offset(&self) -> i64 {
        self.offset
    }

    /// After a page of `bytes` with `new` rows that no page before had, which names `next` as next offset: whether
    /// to ask for another one.
    pub(super) fn more(&mut self, new: usize, bytes: usize, next: i64) -> Result<bool, ClientError> {
        self.pages = self.pages.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_BYTES {
            return Err(self.endless());
        }
        // Offsets must grow, and rows must be new, or a careless operator keeps us here for ever.
        if new == 0 || next <= self.offset {
            return Ok(false);
        }
        if self.pages >= MAX_PAGES || Instant::now() > self.end {
            return Err(self.endless());
        }
        self.offset = next;
        Ok(true)
    }

    const fn endless(&self) -> ClientError {
        ClientError::Endless { operator: self.operator.index() }
    }
}
