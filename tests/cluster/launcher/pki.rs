//! Certificates, keys and tokens of a cluster, and a kubeconfig for each of its programs.

use std::fmt::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use crate::layout::{Error, Files, NODE, Network};

/// Makes all of it, unless the directory has it from before.
pub fn make(files: &Files, network: &Network) -> Result<(), Error> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "perch test cluster");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    files.write("pki/ca.crt", authority.pem())?;
    files.write("pki/ca.key", authority.key().serialize_pem())?;

    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "127.0.0.1",
        &network.address,
        &network.api_service(),
    ];
    let mut server = CertificateParams::new(names.map(str::to_owned).to_vec())?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    files.write("pki/apiserver.crt", server.signed_by(&key, &authority)?.pem())?;
    files.write("pki/apiserver.key", key.serialize_pem())?;

    // With this the API server shows the kubelet who it is.
    let mut client = CertificateParams::default();
    client.distinguished_name.push(DnType::CommonName, "kube-apiserver-kubelet-client");
    client.distinguished_name.push(DnType::OrganizationName, "system:masters");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    files.write("pki/kubelet-client.crt", client.signed_by(&key, &authority)?.pem())?;
    files.write("pki/kubelet-client.key", key.serialize_pem())?;

    let key = KeyPair::generate()?;
    files.write("pki/service-accounts.key", key.serialize_pem())?;
    files.write("pki/service-accounts.pub", key.public_key_pem())?;

    let node = format!("system:node:{NODE}");
    let users = [
        ("admin", "admin", "system:masters"),
        ("kube-controller-manager", "system:kube-controller-manager", ""),
        ("kube-scheduler", "system:kube-scheduler", ""),
        ("kubelet", &node, "system:nodes"),
        ("kube-proxy", "system:kube-proxy", ""),
        ("network-policies", "perch:network-policies", ""),
        ("kwok", "perch:kwok", "system:masters"),
    ];
    let mut tokens = String::new();
    for (program, user, groups) in users {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let _ = writeln!(tokens, "{token},{user},{user},\"{groups}\"");
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "perch-test",
            "clusters": [{"name": "perch-test", "cluster": {
                "server": format!("https://{}:{}", network.address, network.api),
                "certificate-authority-data": STANDARD.encode(authority.pem()),
            }}],
            "users": [{"name": program, "user": {"token": token}}],
            "contexts": [{"name": "perch-test", "context": {"cluster": "perch-test", "user": program}}],
        });
        let file = if program == "admin" { "kubeconfig".to_owned() } else { format!("pki/{program}.kubeconfig") };
        files.write(&file, serde_yaml_ng::to_string(&kubeconfig)?)?;
    }
    files.write("pki/tokens.csv", tokens)?;
    Ok(())
}
