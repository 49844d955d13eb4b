//! Quotas per address and per identity. Addresses are those of the TCP connection; no header is believed.

use std::{
    fmt,
    future::Future,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::DefaultKeyedStateStore,
};
use http::{HeaderValue, Request, Response, StatusCode, header};
use secp256k1::PublicKey;
use spark_proto::transport::RemoteAddr;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::{deletion_log::FILES, status::Refused};

/// Checks between two sweeps that forget keys whose quota is full again.
const SWEEP_EVERY: u32 = 4096;

/// Sustained calls per second, and how many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Calls per second from one IPv4 address or IPv6 /64; calls without a session count by their cost.
    pub address_per_second: NonZeroU32,
    /// Burst of one address.
    pub address_burst: NonZeroU32,
    /// Cost units per second of one identity.
    pub identity_per_second: NonZeroU32,
    /// Burst of one identity, in cost units.
    pub identity_burst: NonZeroU32,
}

type Keyed<K> = RateLimiter<K, DefaultKeyedStateStore<K>, DefaultClock>;

/// Running counts.
pub struct Quotas {
    address: Limit<IpAddr>,
    identity: Limit<[u8; 33]>,
}

impl fmt::Debug for Quotas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quotas").finish_non_exhaustive()
    }
}

impl Quotas {
    /// Empty counts under these limits.
    pub fn new(limits: QuotaLimits) -> Self {
        Self {
            address: Limit::new("address", limits.address_per_second, limits.address_burst),
            identity: Limit::new("identity", limits.identity_per_second, limits.identity_burst),
        }
    }

    /// Counts `cost` units of an address.
    pub fn take_address(&self, address: IpAddr, cost: u32) -> Result<(), Refused> {
        NonZeroU32::new(cost).map_or(Ok(()), |cost| self.address.take(&network_of(address), cost))
    }

    /// Counts `cost` units of an identity.
    pub fn take_identity(&self, identity: &PublicKey, cost: u32) -> Result<(), Refused> {
        self.identity.take(&identity.serialize(), NonZeroU32::new(cost).unwrap_or(NonZeroU32::MIN))
    }
}

/// One customer of IPv6 holds a whole /64.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

struct Limit<K: Hash + Eq + Clone> {
    name: &'static str,
    limiter: Keyed<K>,
    checks: AtomicU32,
}

impl<K: Hash + Eq + Clone> Limit<K> {
    fn new(name: &'static str, per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let limiter = RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst));
        Self { name, limiter, checks: AtomicU32::new(0) }
    }

    fn take(&self, key: &K, cost: NonZeroU32) -> Result<(), Refused> {
        if self.checks.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.limiter.retain_recent();
        }
        match self.limiter.check_key_n(key, cost) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(later)) => {
                Err(Refused::quota(self.name, later.wait_time_from(DefaultClock::default().now())))
            }
            // Dearer than the whole burst: the limit is configured below what one call costs.
            Err(_) => Err(Refused::quota(self.name, Duration::from_secs(1))),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct AddressQuotaLayer {
    quotas: Arc<Quotas>,
}

impl AddressQuotaLayer {
    pub(super) fn new(quotas: Arc<Quotas>) -> Self {
        Self { quotas }
    }
}

impl<S> Layer<S> for AddressQuotaLayer {
    type Service = AddressQuota<S>;

    fn layer(&self, inner: S) -> AddressQuota<S> {
        AddressQuota { inner, quotas: self.quotas.clone() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct AddressQuota<S> {
    inner: S,
    quotas: Arc<Quotas>,
}

impl<S, B> Service<Request<B>> for AddressQuota<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let refused = match request.extensions().get::<RemoteAddr>() {
            Some(RemoteAddr(address)) => self.quotas.take_address(address.ip(), 1).err(),
            // Only a listener that is not ours would leave it out.
            None => Some(Refused::quota("address", Duration::from_secs(1))),
        };
        match refused {
            // Files are for any HTTP client, and an empty one must not be taken for the file.
            Some(refused) if request.uri().path().starts_with(FILES) => {
                let response = too_many(refused.retry_after.unwrap_or(Duration::from_secs(1)));
                Box::pin(async move { Ok(response) })
            }
            // A response without body: native and grpc-web clients both read the status from the headers.
            Some(refused) => {
                let response = Status::from(refused).into_http();
                Box::pin(async move { Ok(response) })
            }
            None => Box::pin(self.inner.call(request)),
        }
    }
}

fn too_many(wait: Duration) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let seconds = wait.as_secs().saturating_add(1);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas() -> Quotas {
        let (one, three) = (NonZeroU32::MIN, NonZeroU32::new(3).unwrap());
        Quotas::new(QuotaLimits {
            address_per_second: one,
            address_burst: three,
            identity_per_second: one,
            identity_burst: three,
        })
    }

    #[test]
    fn bursts_end_and_keys_are_apart() {
        let quotas = quotas();
        let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..3 {
            quotas.take_address(a, 1).unwrap();
        }
        let refused = quotas.take_address(a, 1).unwrap_err();
        assert!(refused.retry_after.unwrap() > Duration::ZERO);
        quotas.take_address(b, 1).unwrap();
    }

    #[test]
    fn one_ipv6_network_is_one_client() {
        let quotas = quotas();
        for host in ["2001:db8::1", "2001:db8::2", "2001:db8::3:4"] {
            quotas.take_address(host.parse().unwrap(), 1).unwrap();
        }
        assert!(quotas.take_address("2001:db8::9".parse().unwrap(), 1).is_err());
        assert!(quotas.take_address("2001:db8:0:1::9".parse().unwrap(), 1).is_ok());
        assert_eq!(network_of("::ffff:10.0.0.1".parse().unwrap()), "10.0.0.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn costs_weigh() {
        let quotas = quotas();
        let key = secp256k1::SecretKey::from_slice(&[1; 32]).unwrap().public_key(secp256k1::SECP256K1);
        quotas.take_identity(&key, 3).unwrap();
        assert!(quotas.take_identity(&key, 1).is_err());
        assert!(quotas.take_identity(&key, 4).is_err());
    }
}
