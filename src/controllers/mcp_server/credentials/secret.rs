//! Secrets that are read to fetch a credential, and the one that keeps what was fetched.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        core::v1::{Secret, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::{Deserialize, Serialize};

use super::{super::MANAGER, Entry};
use crate::{
    api::mcp_server::{Credential, McpServer, SecretKey, SecretSource},
    credentials::{
        ObtainError, Obtained, Source,
        oauth2::ClientCredentials,
        vault::{KeyValue, Login},
    },
    names::ServerKey,
    runtime::kubernetes::naming,
};

/// Annotation of the Secret: what its values are, and until when; never a value.
const RECORDS: &str = "perch.dev/credentials";
/// Seconds that a token lasts with which Perch logs in; the least that a cluster gives.
const LOGIN: i64 = 600;

/// Whose credentials.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The key under which they are kept.
    pub key: ServerKey,
    reference: Option<OwnerReference>,
}

impl Owner {
    /// Those of a server, under one of its keys.
    pub fn of(server: &McpServer, key: &ServerKey) -> Self {
        Self { key: key.clone(), reference: server.controller_owner_ref(&()) }
    }

    fn secret(&self) -> String {
        naming::credentials_secret(&self.key.name)
    }
}

/// What is written beside a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    source: String,
    fetched: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Timestamp>,
}

/// Whether a value is the one that was there.
pub fn same(before: Option<&SecretSlice<u8>>, now: &SecretSlice<u8>) -> bool {
    before.is_some_and(|before| before.expose_secret() == now.expose_secret())
}

fn refused(what: String, error: kube::Error) -> ObtainError {
    match error {
        kube::Error::Api(status) if status.code == 403 => ObtainError::NotPermitted(format!(
            "Perch may not {what}: let it with the chart's value credentials.enabled (for logins at Vault also credentials.serviceAccountTokens), see docs/guides/credentials.md"
        )),
        kube::Error::Api(status) => ObtainError::ApiUnavailable(format!("Perch cannot {what}: {}", status.message)),
        error => ObtainError::ApiUnavailable(format!("Perch cannot {what}: {error}")),
    }
}

/// What is kept of the wanted credentials, and whether the Secret holds more than that.
pub async fn read(
    client: &Client,
    owner: &Owner,
    wanted: &[&Credential],
) -> Result<(BTreeMap<String, Entry>, bool), ObtainError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &owner.key.namespace);
    let name = owner.secret();
    let found = api.get_opt(&name).await.map_err(|error| refused(format!("read Secret {name:?}"), error))?;
    let Some(found) = found else { return Ok((BTreeMap::new(), false)) };
    let owned = |kind: &str| found.owner_references().iter().any(|r| r.kind == kind);
    if !owned("McpServer") {
        return Err(ObtainError::Invalid(format!(
            "Secret {name:?} is not Perch's, and its name is that of the Secret where Perch keeps what it fetches: rename it"
        )));
    }
    let uid = owner.reference.as_ref().map(|r| r.uid.as_str());
    let data = found.data.clone().unwrap_or_default();
    if !found.owner_references().iter().any(|r| Some(r.uid.as_str()) == uid) {
        // Of a namesake that was deleted: none of our values.
        return Ok((BTreeMap::new(), !data.is_empty()));
    }
    let records = found.annotations().get(RECORDS).and_then(|text| serde_json::from_str(text).ok());
    let records: BTreeMap<String, Record> = records.unwrap_or_default();
    let entries: BTreeMap<String, Entry> =
        wanted.iter().filter_map(|c| Some((c.name.clone(), entry(c, records.get(&c.name)?, &data)?))).collect();
    let stale = data.keys().any(|name| !wanted.iter().any(|c| c.name == *name));
    Ok((entries, stale))
}

/// A value that is kept, if it is the one that is meant today.
fn entry(credential: &Credential, record: &Record, data: &BTreeMap<String, ByteString>) -> Option<Entry> {
    let mut entry = Entry::new(credential, record.fetched);
    if entry.source != record.source {
        return None;
    }
    let value = data.get(&credential.name)?.0.clone().into();
    entry.succeed(credential, Obtained { value, expires: record.expires }, record.fetched);
    Some(entry)
}

/// Writes what was fetched.
pub async fn write(client: &Client, owner: &Owner, entries: &BTreeMap<String, Entry>) -> Result<(), ObtainError> {
    let there = || entries.iter().filter_map(|(name, entry)| Some((name, entry, entry.value.as_ref()?)));
    let records: BTreeMap<&String, Record> = there()
        .map(|(name, e, _)| (name, Record { source: e.source.clone(), fetched: e.fetched, expires: e.expires }))
        .collect();
    let records = serde_json::to_string(&records).map_err(|error| {
        ObtainError::Invalid(format!("what is known of the credentials cannot be written: {error}"))
    })?;
    let name = owner.secret();
    let labels = [
        (naming::MANAGED_BY.to_owned(), naming::PERCH.to_owned()),
        (naming::SERVER.to_owned(), naming::label_value(&owner.key.name)),
    ];
    let object = Secret {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(owner.key.namespace.clone()),
            labels: Some(labels.into()),
            annotations: Some([(RECORDS.to_owned(), records)].into()),
            owner_references: owner.reference.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".into()),
        data: Some(there().map(|(name, _, v)| (name.clone(), ByteString(v.expose_secret().to_vec()))).collect()),
        ..Secret::default()
    };
    let api: Api<Secret> = Api::namespaced(client.clone(), &owner.key.namespace);
    let written = api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await;
    written.map(|_| ()).map_err(|error| refused(format!("write Secret {name:?}"), error))
}

/// Takes all values out of the Secret, if it is there.
pub async fn clear(client: &Client, owner: &Owner) -> Result<(), ObtainError> {
    let (_, holds_values) = read(client, owner, &[]).await?;
    if holds_values { write(client, owner, &BTreeMap::new()).await } else { Ok(()) }
}

/// Fetches the value of a credential.
pub async fn obtain(client: &Client, namespace: &str, credential: &Credential) -> Result<Obtained, ObtainError> {
    let reader = Reader { client, namespace };
    let source: Box<dyn Source> = if let Some(oauth2) = &credential.oauth2 {
        let id = match (&oauth2.client_id, &oauth2.client_id_from) {
            (Some(id), _) => id.clone(),
            (None, Some(from)) => reader.text(&from.secret_key_ref).await?.expose_secret().to_owned(),
            (None, None) => return Err(ObtainError::Invalid("set clientID or clientIDFrom".into())),
        };
        let secret = reader.text(&oauth2.client_secret_from.secret_key_ref).await?;
        let authority = reader.authority(oauth2.certificate_authority_from.as_ref()).await?;
        Box::new(ClientCredentials::new(oauth2, id, secret, authority.as_deref())?)
    } else if let Some(vault) = &credential.vault {
        let login = match (&vault.auth.kubernetes, &vault.auth.token_from) {
            (Some(auth), _) => Login::Jwt {
                mount: auth.mount.clone(),
                role: auth.role.clone(),
                jwt: reader.account_token(&auth.service_account_name, &auth.audience).await?,
            },
            (None, Some(from)) => Login::Token(reader.text(&from.secret_key_ref).await?),
            (None, None) => return Err(ObtainError::Invalid("set auth.kubernetes or auth.tokenFrom".into())),
        };
        let authority = reader.authority(vault.certificate_authority_from.as_ref()).await?;
        Box::new(KeyValue::new(vault, login, authority.as_deref())?)
    } else {
        return Err(ObtainError::Invalid("there is nothing to fetch".into()));
    };
    source.obtain(Timestamp::now()).await
}

struct Reader<'a> {
    client: &'a Client,
    namespace: &'a str,
}

impl Reader<'_> {
    async fn bytes(&self, from: &SecretKey) -> Result<Vec<u8>, ObtainError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), self.namespace);
        let SecretKey { name, key } = from;
        let found = api.get_opt(name).await.map_err(|error| refused(format!("read Secret {name:?}"), error))?;
        let found = found.ok_or_else(|| {
            ObtainError::MissingReference(format!(
                "Secret {name:?} does not exist in namespace {:?}: create it",
                self.namespace
            ))
        })?;
        let value = found.data.and_then(|mut data| data.remove(key));
        value.map(|value| value.0).filter(|value| !value.is_empty()).ok_or_else(|| {
            ObtainError::MissingReference(format!("key {key:?} is not in Secret {name:?}, or is empty: add it"))
        })
    }

    /// A text; the line end that files often have is not part of it.
    async fn text(&self, from: &SecretKey) -> Result<SecretString, ObtainError> {
        let text = String::from_utf8(self.bytes(from).await?)
            .map_err(|_| ObtainError::Invalid(format!("key {:?} of Secret {:?} is not text", from.key, from.name)))?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned().into())
    }

    async fn authority(&self, from: Option<&SecretSource>) -> Result<Option<Vec<u8>>, ObtainError> {
        match from {
            Some(from) => self.bytes(&from.secret_key_ref).await.map(Some),
            None => Ok(None),
        }
    }

    /// A token of a ServiceAccount, for one login.
    async fn account_token(&self, account: &str, audience: &str) -> Result<SecretString, ObtainError> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), self.namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.to_owned()]),
                expiration_seconds: Some(LOGIN),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        match api.create_token_request(account, &PostParams::default(), &request).await {
            Ok(answer) => Ok(answer.status.and_then(|s| s.token).unwrap_or_default().into()),
            Err(kube::Error::Api(status)) if status.code == 404 => Err(ObtainError::MissingReference(format!(
                "ServiceAccount {account:?} does not exist in namespace {:?}: create it",
                self.namespace
            ))),
            Err(error) => Err(refused(format!("get a token of ServiceAccount {account:?}"), error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::schedule;

    #[test]
    fn a_record_of_another_source_is_no_record() {
        let credential = |scope: &str| -> Credential {
            serde_yaml_ng::from_str(&format!(
                "{{name: x, oauth2: {{tokenURL: 'https://a/t', clientID: c, scopes: [{scope}], clientSecretFrom: {{secretKeyRef: {{name: s, key: k}}}}}}}}"
            ))
            .unwrap()
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let record = Record { source: credential("a").source_digest(), fetched: at(0), expires: Some(at(100)) };
        let data = BTreeMap::from([("x".to_owned(), ByteString(b"token".to_vec()))]);
        let kept = entry(&credential("a"), &record, &data).unwrap();
        assert_eq!((kept.next, kept.expires), (Some(at(75)), Some(at(100))));
        assert_eq!(kept.next, schedule::after_success(at(0), Some(at(100)), None));
        assert!(entry(&credential("b"), &record, &data).is_none());
        assert!(entry(&credential("a"), &record, &BTreeMap::new()).is_none());
    }
}
