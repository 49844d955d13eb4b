//! All pages of an answer. The operator says where the next one begins, so it is held to go forward and to end.

use prost::Message as _;
use spark_proto::signer::v1::GetReceiptsResponse;

use super::ReceiptError;
use crate::WalletError;

/// Most pages that are asked for: a leaf with more receipts than these hold is no longer followed at this operator.
const MAX_PAGES: usize = 64;
/// Most receipts and bytes of an honest page: one ends with the receipt that reaches 1 MiB.
const MAX_RECEIPTS: usize = 256;
const MAX_BYTES: usize = 2 << 20;

/// Whether an operator keeps to what it is asked: some receipts, in order, from there on and before the next page.
fn is_page(page: &GetReceiptsResponse, from: u64) -> bool {
    let places = page.receipts.iter().map(|receipt| receipt.log_index);
    page.receipts.len() <= MAX_RECEIPTS
        && page.encoded_len() <= MAX_BYTES
        && places.clone().is_sorted_by(|a, b| a < b)
        && places.clone().all(|place| place >= from && (page.next == 0 || place < page.next))
}

/// Adds to the first page those that follow, of the head that has `size` entries. `ask`: the page from there on.
pub(super) async fn follow(
    first: GetReceiptsResponse,
    size: u64,
    mut ask: impl AsyncFnMut(u64) -> Result<GetReceiptsResponse, WalletError>,
) -> Result<GetReceiptsResponse, WalletError> {
    let (mut all, mut from) = (first, 0);
    if !is_page(&all, from) {
        return Err(ReceiptError::Pages.into());
    }
    for _ in 0..MAX_PAGES {
        let next = all.next;
        if next == 0 {
            return Ok(all);
        }
        if next <= from || next >= size {
            break;
        }
        let page = ask(next).await?;
        if !is_page(&page, next) {
            break;
        }
        all.receipts.extend(page.receipts);
        all.proofs.extend(page.proofs);
        (from, all.next) = (next, page.next);
    }
    Err(ReceiptError::Pages.into())
}

#[cfg(test)]
mod tests {
    use spark_proto::peer::v1::Receipt;

    use super::*;

    fn page(place: u64, next: u64) -> GetReceiptsResponse {
        let receipts = vec![Receipt { log_index: place, ..Receipt::default() }];
        GetReceiptsResponse { receipts, next, ..GetReceiptsResponse::default() }
    }

    #[tokio::test]
    async fn pages_follow_each_other_to_the_last() {
        let ask = async |from| Ok(page(from, if from < 8 { from + 3 } else { 0 }));
        let all = follow(page(0, 2), 20, ask).await.unwrap();
        let places: Vec<u64> = all.receipts.iter().map(|receipt| receipt.log_index).collect();
        assert_eq!((places, all.next), (vec![0, 2, 5, 8], 0));
    }

    #[tokio::test]
    async fn a_page_is_no_larger_than_honest_ones_and_in_order() {
        let receipt = |log_index| Receipt { log_index, ..Receipt::default() };
        let refused = async |page: GetReceiptsResponse| {
            follow(page, u64::MAX, async |_| unreachable!("nothing is asked")).await.unwrap_err();
        };
        let of = |receipts: Vec<Receipt>, next| GetReceiptsResponse { receipts, next, ..Default::default() };
        refused(of((0..257).map(receipt).collect(), 500)).await;
        refused(of(vec![receipt(3), receipt(3)], 0)).await;
        refused(of(vec![receipt(3), receipt(7)], 5)).await;
        let large = Receipt { salt: vec![0; 3 << 20], ..receipt(1) };
        refused(of(vec![large], 0)).await;
        let back = follow(page(0, 5), u64::MAX, async |_| Ok(page(4, 0))).await;
        assert!(matches!(back, Err(WalletError::Receipt(ReceiptError::Pages))));
    }

    #[tokio::test]
    async fn an_operator_cannot_keep_a_wallet_asking() {
        let ends = async |next: fn(u64) -> u64, size| {
            let mut asked = 0;
            let ask = async |from| {
                asked += 1;
                Ok(page(from, next(from)))
            };
            let refused = follow(page(0, 5), size, ask).await.unwrap_err();
            assert!(matches!(refused, WalletError::Receipt(ReceiptError::Pages)), "{refused:?}");
            asked
        };
        assert_eq!(ends(|from| from, u64::MAX).await, 1, "the same page again");
        assert_eq!(ends(|from| from - 1, u64::MAX).await, 1);
        assert_eq!(ends(|_| 20, 20).await, 1, "beyond the head");
        assert_eq!(ends(|from| from + 1, u64::MAX).await, MAX_PAGES);
    }
}
