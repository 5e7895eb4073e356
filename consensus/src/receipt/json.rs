//! The text form: JSON, readable, and with one spelling only.
//!
//! | field          | content                                                                    |
//! |----------------|----------------------------------------------------------------------------|
//! | `format`       | [`FORMAT`]                                                                  |
//! | `reading`      | what it says, in words; follows from the rest                              |
//! | `request`      | the request's fields; its signed bytes are their canonical encoding        |
//! | `signature`    | the client's, over the request                                             |
//! | `result`       | the outcome's canonical encoding                                           |
//! | `path`         | position, number of leaves, siblings                                       |
//! | `block`        | the header                                                                 |
//! | `attestations` | replica and signature, f+1 times                                           |
//! | `epochs`       | changes of members: header, certificate, members                           |
//!
//! Bytes, digests, keys and signatures are lower-case hexadecimal. The text is what `to_json` writes,
//! byte for byte, its last newline included.

use super::{RECEIPT_BYTES_MAX, Receipt, ReceiptError, reading};
use crate::epoch_chain::EpochLink;
use crate::message::{BlockHeader, Request, RequestBody, SignedRequest};
use crate::types::{ClientId, ReplicaId, RequestNumber, SessionId};
use crate::wire;
use conclave_crypto::merkle::MerklePath;
use conclave_crypto::signature::Signature;
use serde::{Deserialize, Serialize};

/// Names the format and its version.
const FORMAT: &str = "conclave receipt, version 1";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: String,
    reading: reading::Reading,
    request: RequestText,
    signature: Signature,
    #[serde(with = "hex_bytes")]
    result: Vec<u8>,
    path: MerklePath,
    block: BlockHeader,
    attestations: Vec<AttestationText>,
    epochs: Vec<EpochLink>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AttestationText {
    replica: ReplicaId,
    signature: Signature,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestText {
    client: ClientId,
    body: BodyText,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum BodyText {
    Submit {
        session: SessionId,
        number: RequestNumber,
        acknowledged: RequestNumber,
        #[serde(with = "hex_bytes")]
        operations: Vec<u8>,
    },
    OpenSession {
        opened: u64,
        close: Option<SessionId>,
        #[serde(with = "hex_bytes")]
        nonce: Vec<u8>,
    },
}

impl Receipt {
    /// The text form.
    ///
    /// # Panics
    /// Never: all of it can be written as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let Request { client, body } = self.request.request();
        let body = match body {
            RequestBody::Submit { session, number, acknowledged, operations } => {
                BodyText::Submit { session, number, acknowledged, operations }
            }
            RequestBody::OpenSession { opened, close, nonce } => {
                BodyText::OpenSession { opened, close, nonce: nonce.to_vec() }
            }
        };
        let attestations = self
            .attestations
            .iter()
            .map(|(replica, signature)| AttestationText {
                replica: *replica,
                signature: *signature,
            })
            .collect();
        let text = Text {
            format: FORMAT.to_owned(),
            reading: reading::Reading::of(self),
            request: RequestText { client, body },
            signature: self.request.signature(),
            result: self.result.clone(),
            path: self.path.clone(),
            block: self.header.clone(),
            attestations,
            epochs: self.epochs.clone(),
        };
        let mut json = serde_json::to_string_pretty(&text).expect("strings, numbers and lists");
        json.push('\n');
        json
    }

    /// Reads the text form. Proves nothing yet, but that no byte of it is without meaning.
    ///
    /// # Errors
    /// [`ReceiptError::Text`] when it is no receipt, [`ReceiptError::NotCanonical`] when it is not as
    /// it was written, [`ReceiptError::Request`] when its request is none.
    pub fn from_json(json: &str) -> Result<Self, ReceiptError> {
        if json.len() > RECEIPT_BYTES_MAX {
            return Err(ReceiptError::Text(format!("longer than {RECEIPT_BYTES_MAX} bytes")));
        }
        let text: Text =
            serde_json::from_str(json).map_err(|error| ReceiptError::Text(error.to_string()))?;
        if text.format != FORMAT {
            return Err(ReceiptError::Text(format!("the format is not {FORMAT:?}")));
        }
        let body = match text.request.body {
            BodyText::Submit { session, number, acknowledged, operations } => {
                RequestBody::Submit { session, number, acknowledged, operations }
            }
            BodyText::OpenSession { opened, close, nonce } => {
                let nonce = nonce
                    .try_into()
                    .map_err(|_| ReceiptError::Text("a nonce has 16 bytes".to_owned()))?;
                RequestBody::OpenSession { opened, close, nonce }
            }
        };
        let request = Request { client: text.request.client, body };
        let receipt = Self {
            request: SignedRequest::from_parts(wire::encode(&request), text.signature)?,
            result: text.result,
            path: text.path,
            header: text.block,
            attestations: text
                .attestations
                .into_iter()
                .map(|attestation| (attestation.replica, attestation.signature))
                .collect(),
            epochs: text.epochs,
        };
        let written = receipt.to_json();
        if written != json {
            let equal = written.lines().zip(json.lines()).take_while(|(a, b)| a == b).count();
            return Err(ReceiptError::NotCanonical { line: equal + 1 });
        }
        Ok(receipt)
    }
}

/// Bytes as lower-case hexadecimal text.
mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Write;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            // Writing into a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(D::Error::custom("expected lower-case hexadecimal digits")),
        };
        if text.len() % 2 != 0 {
            return Err(D::Error::custom("expected an even number of hexadecimal digits"));
        }
        text.as_bytes().chunks(2).map(|pair| Ok(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
    }
}
