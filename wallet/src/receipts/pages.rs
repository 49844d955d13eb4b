//! All pages of an answer. The operator says where the next one begins, so it is held to go forward and to end.

use spark_proto::signer::v1::GetReceiptsResponse;

use super::ReceiptError;
use crate::WalletError;

/// Most pages that are asked for: a leaf with more receipts than these hold is no longer followed at this operator.
const MAX_PAGES: usize = 1024;

/// Adds to the first page those that follow, of the head that has `size` entries. `ask`: the page from there on.
pub(super) async fn follow(
    first: GetReceiptsResponse,
    size: u64,
    mut ask: impl AsyncFnMut(u64) -> Result<GetReceiptsResponse, WalletError>,
) -> Result<GetReceiptsResponse, WalletError> {
    let (mut all, mut from) = (first, 0);
    for _ in 0..MAX_PAGES {
        let next = all.next;
        if next == 0 {
            return Ok(all);
        }
        if next <= from || next >= size {
            break;
        }
        let page = ask(next).await?;
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
