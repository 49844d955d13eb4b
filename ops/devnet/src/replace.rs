//! A signer that is lost for good, and another one in its place: what people do by the runbook of a lost signer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use spark_rules::federation::FederationFile;
use spark_softhsm::TokenDir;

use crate::{
    member::{Made, Member, new_tokens},
    network::Devnet,
};

/// Store, tokens and certificate that were lost, and may turn up again.
#[derive(Debug)]
pub struct Material {
    store: PathBuf,
    tokens: TokenDir,
    certificate: PathBuf,
    spki: [u8; 32],
}

impl Material {
    /// The store's file.
    pub fn store(&self) -> &Path {
        &self.store
    }
}

/// Where the pages of a store lie.
fn pages(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".pages");
    name.into()
}

/// Moves a store: both its files.
pub fn rename_store(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::rename(from, to)?;
    fs::rename(pages(from), pages(to))
}

/// Copies a store: both its files.
pub fn copy_store(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::copy(from, to)?;
    fs::copy(pages(from), pages(to)).map(|_| ())
}

impl Member {
    fn store(&self) -> PathBuf {
        self.dir().join("signer.redb")
    }

    /// Takes store and tokens away, and makes fresh ones by a ceremony.
    fn replace_signer(
        &mut self,
        life: u64,
        authority: &crate::certs::Authority,
        ca: &Path,
    ) -> anyhow::Result<(Material, Made)> {
        let aside = self.dir().join(format!("signer.redb.{life}"));
        rename_store(&self.store(), &aside)?;
        let tokens = new_tokens(self.index(), &self.dir().join(format!("tokens-{life}")))?;
        let certificate = self.dir().join(format!("signer-token-{life}.pem"));
        let lost = Material {
            store: aside,
            tokens: std::mem::replace(&mut self.tokens, tokens),
            certificate: std::mem::replace(&mut self.signer_certificate, certificate),
            spki: self.signer_spki,
        };
        self.make_tls_key(authority)?;
        Ok((lost, self.ceremony(ca, None)?))
    }

    /// Exchanges the signer's present material for other one; what was there is in `material` afterwards.
    fn exchange(&mut self, material: &mut Material) -> anyhow::Result<()> {
        let between = self.dir().join("signer.redb.between");
        rename_store(&self.store(), &between)?;
        rename_store(&material.store, &self.store())?;
        rename_store(&between, &material.store)?;
        std::mem::swap(&mut self.tokens, &mut material.tokens);
        std::mem::swap(&mut self.signer_certificate, &mut material.certificate);
        std::mem::swap(&mut self.signer_spki, &mut material.spki);
        Ok(())
    }
}

impl Devnet {
    /// Member `index` loses its signer's store and both its tokens. A ceremony makes another signer, and all members
    /// sign the next epoch of the federation file, with the new keys in it. Nobody approves anything, and what runs goes
    /// on under the old file: see [`Self::restart_members`].
    pub fn lose_signer(&mut self, index: usize) -> anyhow::Result<(Material, Made)> {
        let mut file = FederationFile::parse(&fs::read_to_string(&self.endpoints.federation)?)?;
        let epoch = file.federation.epoch + 1;
        self.process(&format!("signer-{index}"))?.kill()?;
        let member = self.members.get_mut(index).context("no such operator")?;
        let (lost, made) = member.replace_signer(epoch, &self.authority, &self.endpoints.ca)?;
        file.federation.epoch = epoch;
        *file.federation.members.get_mut(index).context("member")? = made.entry.clone();
        file.signatures.clear();
        let path = self.endpoints.federation.with_file_name(format!("federation-{epoch}.json"));
        fs::write(&path, serde_json::to_string_pretty(&file)?)?;
        for member in &self.members {
            member.sign_federation(&path)?;
        }
        let signed = FederationFile::parse(&fs::read_to_string(&path)?)?;
        self.endpoints.federation_hash = hex::encode(signed.verify(None)?.hash());
        self.endpoints.federation = path;
        if let Some(shown) = self.endpoints.operators.get_mut(index) {
            shown.identity_public_key.clone_from(&made.entry.identity_public_key);
        }
        Ok((lost, made))
    }

    /// A person at every other member approves the repair, from their next start on.
    pub fn approve_repair(&mut self, index: usize, incarnation: &str, federation_key: &str) {
        for member in self.members.iter_mut().filter(|member| usize::from(member.index()) != index) {
            member.approved = format!(
                "[[approved_repairs]]\noperator = {index}\nincarnation = {incarnation:?}\nfederation_key = {federation_key:?}\n"
            );
        }
    }

    /// Whether member `index` refreshes by itself what its repair brought back, from its operator's next start on.
    pub fn refresh_after_repair(&mut self, index: usize, refreshes: bool) {
        for member in self.members.iter_mut().filter(|member| usize::from(member.index()) == index) {
            member.refreshes = refreshes;
        }
    }

    /// Starts all signers and operators again, with the present federation file and configuration. Does not wait until
    /// the operators are ready.
    pub async fn restart_members(&mut self) -> anyhow::Result<()> {
        for index in 0..self.members.len() {
            for program in ["operator", "signer"] {
                self.process(&format!("{program}-{index}"))?.kill()?;
            }
        }
        for index in 0..self.members.len() {
            self.start_signer(index).await?;
        }
        for index in 0..self.members.len() {
            let database = self.database_url(u16::try_from(index)?);
            self.start_operator(index, &database)?;
        }
        Ok(())
    }

    /// Puts what was lost, or another one's store alone, in the place of member `index`'s signer, which must be stopped.
    pub fn put_back(&mut self, index: usize, material: &mut Material) -> anyhow::Result<()> {
        self.members.get_mut(index).context("no such operator")?.exchange(material)
    }
}
