use bitcoin::Sequence;
use serde::{Deserialize, Serialize};

use super::DIRECT_OFFSET;

/// Timelock of a new leaf's refund, and of a renewed node.
pub const INITIAL_TIMELOCK: Timelock = Timelock(2000);
/// Blocks between two steps of the ladder.
pub const INTERVAL: u16 = 100;
/// Least refund timelock that a send may use.
pub const LEAST_REFUND_STEP: Timelock = Timelock(INTERVAL);

const MAX: u16 = 2100;
const MARKER: u32 = 1 << 30;
const BLOCKS: u32 = 0xffff;

/// A timelock or sequence that no template allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimelockError {
    /// More blocks than any template uses.
    #[error("timelock of {0} blocks exceeds 2100")]
    TooLong(u32),
    /// The ladder has no lower step.
    #[error("timelock of {0} blocks has no lower step")]
    Exhausted(u16),
    /// Bit 31 switches the timelock off (BIP 68).
    #[error("sequence {0:#010x} disables the timelock")]
    Disabled(u32),
    /// Bit 22 counts in units of 512 seconds (BIP 68).
    #[error("sequence {0:#010x} counts seconds")]
    Seconds(u32),
    /// Bits without meaning are set.
    #[error("sequence {0:#010x} has unknown bits")]
    UnknownBits(u32),
}

/// A relative timelock in blocks, 0 to 2100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Timelock(u16);

impl Timelock {
    /// Spendable at once.
    pub const ZERO: Self = Self(0);

    /// A timelock of `blocks`.
    pub const fn new(blocks: u16) -> Result<Self, TimelockError> {
        if blocks > MAX { Err(TimelockError::TooLong(blocks as u32)) } else { Ok(Self(blocks)) }
    }

    /// Blocks.
    pub const fn blocks(self) -> u16 {
        self.0
    }

    /// No wait at all.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// On the ladder: a multiple of 100.
    pub const fn is_step(self) -> bool {
        self.0.is_multiple_of(INTERVAL)
    }

    /// The multiple of 100 at or below.
    pub const fn round_down(self) -> Self {
        Self(self.0 - self.0 % INTERVAL)
    }

    /// One step down, rounded down to a multiple of 100; at least 0.
    pub const fn step_down(self) -> Result<Self, TimelockError> {
        match self.0.checked_sub(INTERVAL) {
            Some(blocks) => Ok(Self(blocks).round_down()),
            None => Err(TimelockError::Exhausted(self.0)),
        }
    }

    /// The timelock of the direct twin.
    pub const fn direct(self) -> Result<Self, TimelockError> {
        self.later(DIRECT_OFFSET)
    }

    /// The timelock of a transaction that lags by `offset`.
    pub const fn later(self, offset: u16) -> Result<Self, TimelockError> {
        Self::new(self.0.saturating_add(offset))
    }

    /// The step under a timelock with `offset`: inverse of [`Timelock::later`] for templates' timelocks.
    pub const fn without(self, offset: u16) -> Option<Self> {
        match self.0.checked_sub(offset) {
            Some(blocks) => Some(Self(blocks)),
            None => None,
        }
    }
}

impl TryFrom<u16> for Timelock {
    type Error = TimelockError;

    fn try_from(blocks: u16) -> Result<Self, TimelockError> {
        Self::new(blocks)
    }
}

impl From<Timelock> for u16 {
    fn from(timelock: Timelock) -> Self {
        timelock.0
    }
}

impl std::fmt::Display for Timelock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// An input's sequence as templates use it: blocks in the low 16 bits, and a marker of the client in bit 30
/// that consensus ignores and that is carried through. Every other bit is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceField {
    /// Blocks.
    pub timelock: Timelock,
    /// Bit 30.
    pub marker: bool,
}

impl SequenceField {
    /// Reads a sequence; refuses bits 31 and 22, unknown bits, and more than 2100 blocks.
    pub fn parse(sequence: Sequence) -> Result<Self, TimelockError> {
        let raw = sequence.to_consensus_u32();
        if raw & (1 << 31) != 0 {
            return Err(TimelockError::Disabled(raw));
        }
        if raw & (1 << 22) != 0 {
            return Err(TimelockError::Seconds(raw));
        }
        if raw & !(MARKER | BLOCKS) != 0 {
            return Err(TimelockError::UnknownBits(raw));
        }
        let blocks = u16::try_from(raw & BLOCKS).map_err(|_| TimelockError::TooLong(raw & BLOCKS))?;
        Ok(Self { timelock: Timelock::new(blocks)?, marker: raw & MARKER != 0 })
    }

    /// The sequence.
    pub fn encode(self) -> Sequence {
        Sequence::from_consensus(u32::from(self.timelock.0) | if self.marker { MARKER } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sequences_with_other_meanings_are_refused() {
        let parse = |raw| SequenceField::parse(Sequence::from_consensus(raw));
        assert_eq!(parse(0xffff_ffff), Err(TimelockError::Disabled(0xffff_ffff)));
        assert_eq!(parse(1 << 22 | 5), Err(TimelockError::Seconds(1 << 22 | 5)));
        assert_eq!(parse(1 << 16), Err(TimelockError::UnknownBits(1 << 16)));
        assert_eq!(parse(1 << 29 | 5), Err(TimelockError::UnknownBits(1 << 29 | 5)));
        assert_eq!(parse(2101), Err(TimelockError::TooLong(2101)));
        assert_eq!(parse(1 << 30 | 2050).map(|s| (s.timelock.blocks(), s.marker)), Ok((2050, true)));
        assert_eq!(parse(0).map(|s| (s.timelock.blocks(), s.marker)), Ok((0, false)));
    }

    proptest! {
        #[test]
        fn steps_fall_by_at_least_an_interval(blocks in 0u16..=2100) {
            let timelock = Timelock::new(blocks).unwrap();
            match timelock.step_down() {
                Ok(lower) => {
                    prop_assert!(lower.is_step());
                    prop_assert!(lower.blocks() + INTERVAL <= blocks);
                    prop_assert!(lower.blocks() + 2 * INTERVAL > blocks);
                }
                Err(_) => prop_assert!(blocks < INTERVAL),
            }
        }

        #[test]
        fn sequences_round_trip(raw: u32) {
            if let Ok(field) = SequenceField::parse(Sequence::from_consensus(raw)) {
                prop_assert_eq!(field.encode().to_consensus_u32(), raw);
            }
        }
    }
}
