//! Waiting until leaves are final: operators say when to ask again, and what they prove when asked decides.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use spark_proto::log::v1::{WatchLeavesRequest, watch_leaves_response::Event};

use super::Finality;
use crate::{Wallet, WalletError, client::Operator};

/// Without news this wallet asks by itself.
const POLL: Duration = Duration::from_secs(10);
/// A stream that says nothing for this long is opened anew.
const SILENCE: Duration = Duration::from_secs(15);
/// Pause before a stream is opened again.
const REOPEN: Duration = Duration::from_secs(2);
/// News of one step come from all operators at about the same time: one question serves them.
const GATHER: Duration = Duration::from_millis(200);
/// Leaves of one stream.
const BATCH: usize = 32;

impl Wallet {
    /// Waits until all these leaves are settled ([`Finality::is_settled`]), at most for `patience`. `show` sees each leaf's finality at once, and
    /// then whenever it changes. Returns how it stands in the end, in the same order.
    ///
    /// # Errors
    /// Where a leaf id is none. Operators that do not answer count as not clean.
    pub async fn until_final(
        &self,
        leaves: &[String],
        patience: Duration,
        mut show: impl FnMut(&Finality),
    ) -> Result<Vec<Finality>, WalletError> {
        let end = Instant::now() + patience;
        // Streams begin with the present state, so nothing falls between a question and their first news.
        let mut news = Box::pin(self.news(leaves));
        let mut shown: Vec<Option<Finality>> = vec![None; leaves.len()];
        let mut ask: BTreeSet<usize> = (0..leaves.len()).collect();
        loop {
            for (index, (leaf, shown)) in leaves.iter().zip(&mut shown).enumerate() {
                if ask.contains(&index) {
                    let now = self.finality(leaf).await?;
                    if shown.as_ref() != Some(&now) {
                        show(&now);
                        *shown = Some(now);
                    }
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || shown.iter().flatten().all(Finality::is_settled) {
                return Ok(shown.into_iter().flatten().collect());
            }
            ask = tokio::select! {
                named = news.next() => named.into_iter().collect(),
                () = tokio::time::sleep(left.min(POLL)) => (0..leaves.len()).collect(),
            };
            tokio::time::sleep(GATHER).await;
            while let Some(Some(index)) = news.next().now_or_never() {
                ask.insert(index);
            }
        }
    }

    /// Which leaf (by position) has news at some operator. Never ends; what is said is not believed.
    fn news<'w>(&'w self, leaves: &'w [String]) -> impl Stream<Item = usize> + 'w {
        let streams = self.operators().all().iter().flat_map(|operator| {
            leaves.chunks(BATCH).map(move |batch| Box::pin(self.news_of(operator, batch)))
        });
        stream::select_all(streams)
            .filter_map(move |leaf| async move { leaves.iter().position(|known| *known == leaf) })
    }

    fn news_of<'w>(
        &'w self,
        operator: &'w Operator,
        leaves: &'w [String],
    ) -> impl Stream<Item = String> + 'w {
        let open = move || async move {
            let request = WatchLeavesRequest { leaf_ids: leaves.to_vec() };
            let key = self.keys().identity();
            operator.log(key, request, |mut c, r| async move { c.watch_leaves(r).await }).await
        };
        stream::unfold(None, move |mut stream| async move {
            loop {
                let Some(open) = stream.as_mut() else {
                    match open().await {
                        Ok(opened) => stream = Some(opened),
                        Err(error) => {
                            tracing::debug!(%error, "no news of receipts");
                            tokio::time::sleep(REOPEN).await;
                        }
                    }
                    continue;
                };
                match tokio::time::timeout(SILENCE, open.message()).await {
                    Ok(Ok(Some(message))) => {
                        if let Some(Event::Leaf(leaf)) = message.event {
                            return Some((leaf.leaf_id, stream));
                        }
                    }
                    Ok(Ok(None) | Err(_)) | Err(_) => {
                        stream = None;
                        tokio::time::sleep(REOPEN).await;
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use spark_proto::log::v1::{Heartbeat, LeafReceipts, WatchLeavesResponse};
    use tonic::Status;

    use super::*;
    use crate::testing::{LEAF_ID, Liar, wallet};

    fn says(event: Event) -> WatchLeavesResponse {
        WatchLeavesResponse { event: Some(event) }
    }

    fn of(leaf: &str) -> WatchLeavesResponse {
        says(Event::Leaf(LeafReceipts { leaf_id: leaf.to_owned(), ..Default::default() }))
    }

    #[tokio::test]
    async fn news_name_known_leaves_of_any_operator_and_streams_are_opened_again() {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let first = Liar::default().on("watch_leaves", move |request: WatchLeavesRequest| {
            assert_eq!(request.leaf_ids.len(), 2);
            match count.fetch_add(1, Ordering::SeqCst) {
                0 => Err(Status::unavailable("not yet")),
                _ => Ok(vec![says(Event::Heartbeat(Heartbeat {})), of("unknown"), of(LEAF_ID)]),
            }
        });
        let second = Liar::default().on("watch_leaves", |_: WatchLeavesRequest| Ok(vec![of("other")]));
        let (wallet, _dir) = wallet(vec![first, second, Liar::default()]);
        let leaves = ["other".to_owned(), LEAF_ID.to_owned()];
        let news = wallet.news(&leaves);
        let mut named: Vec<usize> = news.take(2).collect().await;
        named.sort_unstable();
        assert_eq!(named, [0, 1]);
        assert_eq!(opened.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn what_is_not_final_in_time_is_shown_as_it_is() {
        let (wallet, _dir) = wallet(vec![Liar::default(), Liar::default(), Liar::default()]);
        let mut shown = Vec::new();
        let leaves = [LEAF_ID.to_owned()];
        let end = wallet.until_final(&leaves, Duration::ZERO, |leaf| shown.push(leaf.clone())).await.unwrap();
        assert_eq!(end, shown);
        assert!(end.len() == 1 && !end[0].is_settled());
    }
}
