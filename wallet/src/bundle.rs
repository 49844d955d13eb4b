//! Exit bundle: everything that an exit needs, in one file that works without any operator and without this
//! wallet's state. Only the seed is not in it.

use serde::{Deserialize, Serialize};
use spark_rules::ids::LeafId;

use crate::{
    Wallet, WalletError,
    config::Config,
    state::{LeafKeyKind, StoredLeaf},
    verify::{Lineage, VerifyError, check_refunds},
};

const FORMAT: &str = "spark-exit-bundle/v1";

/// A bundle that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not JSON of the expected form.
    #[error("bundle: {0}")]
    Format(String),
    /// For another wallet or network.
    #[error("bundle is for another {0}")]
    Other(&'static str),
}

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// "spark-exit-bundle/v1".
    pub format: String,
    /// "regtest", ...
    pub network: String,
    /// Identity key of the wallet, hex.
    pub identity: String,
    /// Account of the seed.
    pub account: u32,
    /// Leaves with all their transactions.
    pub leaves: Vec<StoredLeaf>,
}

impl Bundle {
    /// Reads a bundle's text; nothing is checked yet.
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        let bundle: Self = serde_json::from_str(text).map_err(|e| BundleError::Format(e.to_string()))?;
        if bundle.format == FORMAT { Ok(bundle) } else { Err(BundleError::Format("unknown format".into())) }
    }
}

impl Wallet {
    /// All leaves as last verified.
    pub fn export_bundle(&self) -> Result<Bundle, WalletError> {
        let config: &Config = self.config();
        Ok(Bundle {
            format: FORMAT.into(),
            network: config.network.name().to_ascii_lowercase(),
            identity: self.keys().identity().public_key().to_string(),
            account: config.account,
            leaves: self.state().all()?,
        })
    }

    /// Takes the leaves of a bundle that this wallet does not know yet. Every signature is checked again.
    pub fn import_bundle(&self, bundle: &Bundle) -> Result<usize, WalletError> {
        if bundle.network != self.config().network.name().to_ascii_lowercase() {
            return Err(BundleError::Other("network").into());
        }
        if bundle.identity != self.keys().identity().public_key().to_string() {
            return Err(BundleError::Other("wallet").into());
        }
        let mut taken = 0usize;
        for leaf in &bundle.leaves {
            let id = LeafId::parse(&leaf.leaf_id).map_err(VerifyError::from)?;
            let nodes = leaf
                .lineage
                .iter()
                .map(|n| n.decode().map_err(|e| BundleError::Format(e.to_string())))
                .collect::<Result<Vec<_>, _>>()?;
            let lineage = Lineage::from_nodes(&nodes)?;
            let node = lineage.leaf()?;
            if node.id != id || node.value != leaf.value {
                return Err(BundleError::Format("a leaf is not what it says".into()).into());
            }
            // Roots with several inputs need the chain; their exit checks them again before it starts.
            if lineage.deposit_outpoints().len() == 1 {
                lineage.check(&Default::default())?;
            }
            let key = match leaf.pays {
                LeafKeyKind::Leaf => self.keys().leaf(&id)?.public_key(),
                LeafKeyKind::Identity => self.keys().identity().public_key(),
            };
            check_refunds(node, &key)?;
            if self.state().get::<StoredLeaf>(&leaf.leaf_id)?.is_none() {
                self.state().put(leaf)?;
                taken = taken.saturating_add(1);
            }
        }
        Ok(taken)
    }
}
