//! placeholder
use std::process::ExitCode;
/// Runs.
pub fn main() -> ExitCode { 
    let rt = tokio::runtime::Runtime::new().unwrap();
    rt.block_on(async {
        let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
        let cp = crate::local::ControlPlane::open(&dir, crate::api::crds::all()).await.unwrap();
        let c = crate::local::Credentials::load_or_create(&dir.join("tls")).unwrap();
        let l = tokio::net::TcpListener::bind("127.0.0.1:17443").await.unwrap();
        crate::local::write_private(&dir.join("kubeconfig"), &c.kubeconfig("https://127.0.0.1:17443")).unwrap();
        cp.serve(l, &c, Default::default()).await.unwrap();
    });
    ExitCode::SUCCESS }
