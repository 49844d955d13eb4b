//! `send` and `invoice`.

use spark_rules::address::SparkAddress;
use spark_wallet::{
    Wallet,
    amount::Sats,
    flow::{InvoiceTerms, Sent},
};

use super::{Printer, qr_code};
use crate::{
    cli::{Invoice, Send},
    output::{Address, CommandError, Payee, SentInfo, explain},
};

/// What the arguments of `send` ask for.
enum Payment {
    /// Addresses with their amounts.
    To(Vec<(SparkAddress, u64)>),
    /// An invoice, with an amount where it leaves that open.
    Invoice(String, Option<u64>),
}

pub(super) fn address(text: &str) -> Result<SparkAddress, CommandError> {
    SparkAddress::decode(text).map_err(|e| CommandError::Usage(e.to_string()))
}

fn amount(text: &str) -> Result<u64, CommandError> {
    let parsed: Result<Sats, _> = text.parse();
    parsed.map(|sats| sats.get()).map_err(|e| CommandError::Usage(format!("{text}: {e}")))
}

impl Payment {
    fn of(arguments: &Send) -> Result<Self, CommandError> {
        if let Some(to) = &arguments.to {
            return Self::to(to, arguments.amount.map(Sats::get));
        }
        let mut all = Vec::with_capacity(arguments.to_all.len());
        for text in &arguments.to_all {
            let (to, sats) = match text.split_once(':') {
                Some((to, sats)) => (to, Some(amount(sats)?)),
                None => (text.as_str(), None),
            };
            match Self::to(to, sats)? {
                Self::To(one) => all.extend(one),
                invoice if arguments.to_all.len() == 1 => return Ok(invoice),
                Self::Invoice(..) => return Err(CommandError::Usage("an invoice is paid by itself".into())),
            }
        }
        Ok(Self::To(all))
    }

    fn to(text: &str, sats: Option<u64>) -> Result<Self, CommandError> {
        let address = address(text)?;
        match sats {
            _ if address.invoice.is_some() => Ok(Self::Invoice(text.to_owned(), sats)),
            Some(sats) => Ok(Self::To(vec![(address, sats)])),
            None => Err(CommandError::Usage("how much? An address says no amount".into())),
        }
    }
}

pub(super) async fn run(wallet: &Wallet, arguments: Send, printer: Printer) -> Result<(), CommandError> {
    let payment = Payment::of(&arguments)?;
    for earlier in wallet.resume_sends().await? {
        match earlier {
            Ok(sent) => tracing::info!(transfer = sent.transfer_id, "finished an interrupted transfer"),
            Err((id, error)) => tracing::warn!(transfer = id, error = explain(&error), "still undecided"),
        }
    }
    let sent = match payment {
        Payment::To(to) => match to.as_slice() {
            [(to, sats)] => wallet.send(to, *sats, arguments.id).await?,
            several => wallet.send_many(several, arguments.id).await?,
        },
        Payment::Invoice(text, sats) => wallet.pay_invoice(&text, sats, arguments.id).await?,
    };
    printer.show(&describe(sent))
}

/// What is shown of a transfer.
pub(super) fn describe(sent: Sent) -> SentInfo {
    let payees = sent.payees.into_iter().map(|(receiver, amount_sats)| Payee { receiver, amount_sats });
    SentInfo {
        transfer_id: sent.transfer_id,
        amount_sats: sent.amount,
        receiver: sent.receiver,
        leaves: sent.leaves,
        payees: payees.collect(),
    }
}

pub(super) fn invoice(wallet: &Wallet, arguments: Invoice, printer: Printer) -> Result<(), CommandError> {
    let text = wallet.invoice(InvoiceTerms {
        amount: arguments.amount.map(Sats::get),
        memo: arguments.memo,
        expires_in: arguments.expires,
        sender: arguments.sender.as_deref().map(address).transpose()?,
    })?;
    let qr = if arguments.qr { Some(qr_code(&text)?) } else { None };
    printer.show(&Address { address: text, leaf_id: None, qr })
}
