//! The programs of a cluster: their arguments and their configuration files.

use serde_json::json;

use crate::layout::{Error, Files, NODE, Network, program};

/// A program to run.
#[derive(Clone)]
pub struct Component {
    /// Name of the program, and of its log.
    pub name: &'static str,
    /// Its arguments.
    pub args: Vec<String>,
}

fn component(name: &'static str, args: &[String]) -> Component {
    Component { name, args: args.to_vec() }
}

/// The store.
pub fn etcd(files: &Files, network: &Network) -> Component {
    let client = format!("http://127.0.0.1:{}", network.etcd);
    let peer = format!("http://127.0.0.1:{}", network.etcd_peer);
    component(
        "etcd",
        &[
            format!("--data-dir={}", files.text("etcd")),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--quota-backend-bytes=4294967296".into(),
            "--log-level=warn".into(),
        ],
    )
}

/// The API server. Without controllers (`bare`) nothing makes ServiceAccounts and endpoints, and
/// pods must be accepted all the same.
pub fn apiserver(files: &Files, network: &Network, bare: bool) -> Component {
    let mut args = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", network.etcd),
        format!("--bind-address={}", network.bind),
        format!("--advertise-address={}", network.address),
        format!("--secure-port={}", network.api),
        format!("--cert-dir={}", files.text("pki")),
        format!("--tls-cert-file={}", files.text("pki/apiserver.crt")),
        format!("--tls-private-key-file={}", files.text("pki/apiserver.key")),
        format!("--client-ca-file={}", files.text("pki/ca.crt")),
        format!("--token-auth-file={}", files.text("pki/tokens.csv")),
        format!("--kubelet-client-certificate={}", files.text("pki/kubelet-client.crt")),
        format!("--kubelet-client-key={}", files.text("pki/kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".into(),
        format!("--service-cluster-ip-range={}", network.services()),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-account-key-file={}", files.text("pki/service-accounts.pub")),
        format!("--service-account-signing-key-file={}", files.text("pki/service-accounts.key")),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
    ];
    if network.address == "127.0.0.1" {
        // The API server refuses a loopback address as endpoint of its own Service.
        args.push("--endpoint-reconciler-type=none".into());
    }
    if bare {
        args.push("--disable-admission-plugins=ServiceAccount".into());
    }
    component("kube-apiserver", &args)
}

/// The controllers.
pub fn controller_manager(files: &Files, network: &Network) -> Component {
    let kubeconfig = files.text("pki/kube-controller-manager.kubeconfig");
    component(
        "kube-controller-manager",
        &[
            format!("--kubeconfig={kubeconfig}"),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
            "--use-service-account-credentials=true".into(),
            format!("--service-account-private-key-file={}", files.text("pki/service-accounts.key")),
            format!("--root-ca-file={}", files.text("pki/ca.crt")),
            format!("--cluster-signing-cert-file={}", files.text("pki/ca.crt")),
            format!("--cluster-signing-key-file={}", files.text("pki/ca.key")),
            format!("--cluster-cidr={}", network.pods()),
            "--kube-api-qps=100".into(),
            "--kube-api-burst=200".into(),
        ],
    )
}

/// The scheduler.
pub fn scheduler(files: &Files) -> Component {
    component(
        "kube-scheduler",
        &[
            format!("--kubeconfig={}", files.text("pki/kube-scheduler.kubeconfig")),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
            "--kube-api-qps=100".into(),
            "--kube-api-burst=200".into(),
        ],
    )
}

/// Plays the nodes that have no kubelet.
pub fn kwok(files: &Files) -> Result<Component, Error> {
    Ok(component(
        "kwok",
        &[
            format!("--kubeconfig={}", files.text("pki/kwok.kubeconfig")),
            format!("--config={}", program("kwok.yaml")?.display()),
            "--manage-all-nodes=false".into(),
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake".into(),
            "--cidr=10.114.0.0/16".into(),
            "--node-ip=10.114.0.1".into(),
            "--node-lease-duration-seconds=40".into(),
        ],
    ))
}

/// The container runtime. Its configuration has every path of its own.
pub fn containerd(files: &Files) -> Result<Component, Error> {
    let plugins = if std::path::Path::new("/usr/lib/cni/bridge").exists() { "/usr/lib/cni" } else { "/opt/cni/bin" };
    // The kubelet and the tests reach containerd by its socket, whose path may have 107 bytes.
    let socket = files.containerd();
    if socket.len() > 100 {
        return Err(format!("the path {socket} is too long for a socket: choose a shorter directory").into());
    }
    let config = format!(
        r#"version = 2
root = "{root}"
state = "/run/containerd-state"

[grpc]
  address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Where CAP_SYS_RESOURCE is missing, as in some virtual machines, no pod would start without this.
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{cni}"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"#,
        root = files.text("containerd"),
        cni = files.text("cni"),
    );
    Ok(component("containerd", &[format!("--config={}", files.write("containerd.toml", config)?)]))
}

/// The pod network. Each pod is at the end of a cable to the node (`ptp`), so that all that it
/// sends passes the node's packet filter, whatever the kernel does with bridges.
pub fn cni(files: &Files, network: &Network) -> Result<(), Error> {
    let config = json!({
        "cniVersion": "0.4.0",
        "name": "perch-test",
        "plugins": [
            {"type": "ptp", "ipMasq": false, "ipam": {
                "type": "host-local",
                "dataDir": files.text("cni-addresses"),
                "ranges": [[{"subnet": network.pods()}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            }},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    files.write("cni/10-perch-test.conflist", config.to_string())?;
    Ok(())
}

/// Runs pods.
pub fn kubelet(files: &Files, network: &Network, cgroup: &str) -> Result<Component, Error> {
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.address,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": files.text("pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [network.dns()],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{}", files.containerd()),
        "podLogsDir": files.text("pods"),
        "volumePluginDir": files.text("volume-plugins"),
        // Pods resolve names of the cluster and no others.
        "resolvConf": files.write("resolv.conf", "")?,
        // A full disk is for the person at the machine to see, not for the tests.
        "evictionHard": {"nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": false,
        // So that a rollout in a test takes seconds.
        "syncFrequency": "5s",
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
    });
    Ok(component(
        "kubelet",
        &[
            format!("--config={}", files.write("kubelet.json", config.to_string())?),
            format!("--kubeconfig={}", files.text("pki/kubelet.kubeconfig")),
            format!("--root-dir={}", files.text("kubelet")),
            format!("--cert-dir={}", files.text("kubelet/pki")),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={}", network.address),
        ],
    ))
}

/// Makes Services reachable.
pub fn proxy(files: &Files, network: &Network) -> Result<Component, Error> {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": files.text("pki/kube-proxy.kubeconfig"), "qps": 50, "burst": 100},
        "clusterCIDR": network.pods(),
        "hostnameOverride": NODE,
        "bindAddress": network.address,
        // The kernel has these for the whole machine.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "100ms"},
    });
    Ok(component("kube-proxy", &[format!("--config={}", files.write("kube-proxy.json", config.to_string())?)]))
}

/// Enforces network policies.
pub fn network_policies(files: &Files) -> Component {
    component(
        "network-policies",
        &["network-policies".into(), format!("--kubeconfig={}", files.text("pki/network-policies.kubeconfig"))],
    )
}

/// Image of the first process of each pod.
pub const PAUSE_IMAGE: &str = "perch.local/pause:test";
/// Image of the name server.
pub const DNS_IMAGE: &str = "perch.local/coredns:test";
/// Image of the program that the cluster tests run in pods.
pub const PROBE_IMAGE: &str = "perch.local/probe:test";

/// What a cluster with a node has in it: the name server, and the rights of the node's agents. The
/// names and labels are those that kubeadm gives, for policies select by them.
pub fn node_objects(network: &Network) -> String {
    include_str!("node.yaml").replace("DNS_ADDRESS", &network.dns()).replace("DNS_IMAGE", DNS_IMAGE)
}

/// A node that kwok plays.
pub fn fake_node(number: u32) -> serde_json::Value {
    let resources = json!({"cpu": "32", "memory": "256Gi", "pods": "1000"});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": format!("fake-{number}"),
            "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
            "labels": {"kubernetes.io/hostname": format!("fake-{number}"), "kubernetes.io/os": "linux", "type": "kwok"},
        },
        "status": {"allocatable": resources, "capacity": resources},
    })
}
