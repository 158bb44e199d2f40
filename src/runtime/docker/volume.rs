//! Volumes that outlive a server, opened to the server's user.
//!
//! The engine makes a new volume for root alone, and servers never run as root. The engine itself
//! opens it: it unpacks one empty folder onto the volume's, in a container that is never started.

use bollard::{
    models::{ContainerCreateBody, HostConfig, Mount, MountType},
    query_parameters::{ContainerArchiveInfoOptionsBuilder, UploadToContainerOptionsBuilder},
};

use super::{Engine, label, unavailable};
use crate::runtime::RuntimeError;

/// Everybody who gets the volume at all may write, whatever user the spec names today.
const MODE: u32 = 0o777;
/// Where the volume is in the container that opens it.
const PARENT: &str = "/perch";
const FOLDER: &str = "volume";

/// Opens the volumes of a container that was created and not started.
pub(super) async fn open(engine: &Engine, container: &str, body: &ContainerCreateBody) -> Result<(), RuntimeError> {
    let mounts = body.host_config.iter().flat_map(|h| h.mounts.iter().flatten());
    for mount in mounts.filter(|m| m.typ == Some(MountType::VOLUME)) {
        let path = mount.target.clone().unwrap_or_default();
        let options = ContainerArchiveInfoOptionsBuilder::new().path(&path).build();
        let found = engine.docker.get_container_archive_info(container, Some(options)).await;
        if found.map_err(unavailable("look at a volume"))?.file_mode & MODE != MODE {
            chmod(engine, body, mount).await?;
        }
    }
    Ok(())
}

async fn chmod(engine: &Engine, body: &ContainerCreateBody, volume: &Mount) -> Result<(), RuntimeError> {
    let mount = Mount { target: Some(format!("{PARENT}/{FOLDER}")), read_only: Some(false), ..volume.clone() };
    let labels = body.labels.iter().flatten().filter(|(key, _)| *key == label::INSTANCE);
    let labels = labels.map(|(key, value)| (key.clone(), value.clone()));
    // The label of a session has it removed by the next perch, should this one end right now.
    let labels = labels.chain([(label::SESSION.to_owned(), "true".to_owned())]).collect();
    let opener = ContainerCreateBody {
        image: body.image.clone(),
        labels: Some(labels),
        // Never run; an image without a program needs one to be named.
        cmd: Some(vec!["/perch".into()]),
        host_config: Some(HostConfig {
            mounts: Some(vec![mount]),
            network_mode: Some("none".into()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let none = None::<bollard::query_parameters::CreateContainerOptions>;
    let created = engine.docker.create_container(none, opener).await.map_err(unavailable("open a volume"))?;
    let archive = folder().map_err(|error| RuntimeError::unavailable("open a volume", error))?;
    let options = UploadToContainerOptionsBuilder::new().path(PARENT).build();
    let uploaded =
        engine.docker.upload_to_container(&created.id, Some(options), bollard::body_full(archive.into())).await;
    engine.delete(&created.id).await?;
    uploaded.map_err(unavailable("open a volume"))
}

/// An archive with one empty folder in it.
fn folder() -> std::io::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(MODE);
    header.set_cksum();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, format!("{FOLDER}/"), std::io::empty())?;
    archive.into_inner()
}
