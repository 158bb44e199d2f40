//! One server's containers: what others ask about them, and the [`task`] that makes them what
//! they should be, one revision after the other ([`rollout`]).

mod rollout;
mod task;

use std::sync::{Arc, Mutex, atomic::AtomicBool};

use bollard::{models::ContainerCreateBody, query_parameters::CreateContainerOptionsBuilder};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Engine, container, egress, files, network, unavailable,
    view::{Release, View},
    volume,
};
use crate::{
    names::ServerKey,
    runtime::{Endpoint, InstanceId, Observed, Preparing, RuntimeError, Workload},
};
use task::Task;

#[derive(Clone, Debug)]
enum Wish {
    Run(Arc<Workload>),
    /// Stop all containers and leave them: Perch ends.
    Stop,
    /// The server is being removed; the caller deletes what is left.
    End,
}

/// A server's task, from outside.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    wish: watch::Sender<Wish>,
    ended: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    engine: Arc<Engine>,
    server: ServerKey,
    wake: Notify,
    view: Mutex<View>,
    /// Containers being made. Each is made to its end, even when nobody wants it any more, so that
    /// none comes up after everybody looked.
    making: TaskTracker,
    /// One replica is made at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Keeper {
    pub(super) fn start(engine: Arc<Engine>, workload: Workload, tasks: &TaskTracker) -> Arc<Self> {
        let shared = Arc::new(Shared {
            engine,
            server: workload.server.clone(),
            wake: Notify::new(),
            view: Mutex::default(),
            making: TaskTracker::new(),
            turn: Arc::default(),
        });
        let (wish, wishes) = watch::channel(Wish::Run(Arc::new(workload)));
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let task = Task::new(Arc::clone(&shared));
        tasks.spawn(async move {
            let _guard = guard;
            task.run(wishes).await;
        });
        Arc::new(Self { shared, wish, ended })
    }

    /// Replaces the wish, if it is another one.
    pub(super) fn wish(&self, workload: &Workload) {
        self.wish.send_if_modified(|wish| {
            let new = !matches!(wish, Wish::Run(current) if **current == *workload);
            if new {
                *wish = Wish::Run(Arc::new(workload.clone()));
            }
            new
        });
    }

    pub(super) fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Ends the task and leaves containers to the caller.
    pub(super) async fn end(&self) {
        self.wish.send_replace(Wish::End);
        self.ended.cancelled().await;
        self.shared.made().await;
    }

    /// Stops all containers and ends the task.
    pub(super) async fn stop(&self) {
        self.wish.send_replace(Wish::Stop);
        self.ended.cancelled().await;
    }

    pub(super) fn observed(&self) -> Result<Observed, RuntimeError> {
        let revision = match &*self.wish.borrow() {
            Wish::Run(workload) => Some(workload.revision.clone()),
            Wish::Stop | Wish::End => None,
        };
        self.shared.look(|view| view.observed(revision.as_ref()))
    }

    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        self.shared.look(View::endpoints)
    }

    pub(super) fn find(&self, instance: &InstanceId) -> Option<(String, Arc<AtomicBool>)> {
        self.shared.look(|view| view.find(instance))
    }

    pub(super) fn running(&self) -> Vec<(InstanceId, String)> {
        self.shared.look(View::running)
    }

    pub(super) async fn start_session(&self) -> Result<InstanceId, RuntimeError> {
        let Some(serving) = self.shared.look(|view| view.serving.clone()) else {
            return Err(RuntimeError::NotRunning(self.shared.server.to_string()));
        };
        let container = self.shared.create(&serving, None).await?;
        let id = InstanceId(format!("{}.session", container.get(..12).unwrap_or(&container)));
        let session = (container, Arc::new(AtomicBool::new(false)));
        self.shared.change(|view| view.sessions.insert(id.clone(), session));
        Ok(id)
    }

    pub(super) fn forget_session(&self, instance: &InstanceId) -> Option<String> {
        self.shared
            .look(|view| view.sessions.contains_key(instance))
            .then(|| self.shared.change(|view| view.sessions.remove(instance)).map(|(container, _)| container))?
    }
}

impl Shared {
    fn look<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.lock().expect("nobody panics while holding the view"))
    }

    fn change<T>(&self, change: impl FnOnce(&mut View) -> T) -> T {
        let result = change(&mut self.view.lock().expect("nobody panics while holding the view"));
        // Nobody listening is fine: whoever comes later looks first.
        let _ = self.engine.changes.send(self.server.clone());
        result
    }

    /// Tells of long work for a workload, or of its end. The end of one work says nothing about
    /// that for another revision.
    fn prepare(&self, workload: &Workload, preparing: Option<Preparing>) {
        let preparing = preparing.map(|preparing| (workload.revision.clone(), preparing));
        let news = |view: &View| match (&view.preparing, &preparing) {
            (Some((of, _)), None) => *of == workload.revision,
            (old, new) => old != new,
        };
        if self.look(news) {
            self.change(|view| view.preparing = preparing);
        }
    }

    pub(super) fn body(&self, release: &Release, ordinal: Option<u32>) -> ContainerCreateBody {
        let network = network::name(&self.engine, &release.workload);
        let Release { workload, image } = release;
        let proxy = self.engine.egress.address().filter(|_| egress::is_listed(workload));
        container::body(&self.engine.config, workload, &image.reference, network.as_deref(), proxy, ordinal)
    }

    /// Waits until no container is being made, and lets no other be made.
    async fn made(&self) {
        self.making.close();
        self.making.wait().await;
    }

    /// Creates and starts a container; returns its id. It is made to its end even if the caller
    /// gives up: a replica is found at the next look then, a session is deleted.
    async fn create(self: &Arc<Self>, release: &Release, ordinal: Option<u32>) -> Result<String, RuntimeError> {
        let token = self.making.token();
        if self.making.is_closed() {
            return Err(RuntimeError::NotRunning(self.server.to_string()));
        }
        let turn = match ordinal {
            Some(_) => Some(Arc::clone(&self.turn).lock_owned().await),
            None => None,
        };
        let (shared, release) = (Arc::clone(self), release.clone());
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let _held = (token, turn);
            let made = shared.make(&release, ordinal).await;
            if let Err(Ok(id)) = answer.send(made)
                && ordinal.is_none()
                && let Err(error) = shared.engine.delete(&id).await
            {
                tracing::warn!(server = %shared.server, %error, "a session that nobody waits for was not removed");
            }
        });
        answered.await.unwrap_or_else(|_| Err(RuntimeError::NotRunning(self.server.to_string())))
    }

    /// Creates and starts a container; returns its id. One that does not start is deleted.
    async fn make(&self, release: &Release, ordinal: Option<u32>) -> Result<String, RuntimeError> {
        let (engine, workload) = (&self.engine, &release.workload);
        files::write(&engine.config, workload, false)?;
        network::ensure(engine, workload).await?;
        let body = self.body(release, ordinal);
        let server = &workload.server;
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let place = ordinal.map_or_else(|| "session".to_owned(), |o| o.to_string());
        let name = format!("perch-{}-{}-{place}-{}", server.namespace, server.name, &unique[..8]);
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let created = engine.docker.create_container(Some(options), body.clone()).await;
        let created = created.map_err(unavailable("create a container"))?;
        let started = async {
            volume::open(engine, &created.id, &body).await?;
            engine.docker.start_container(&created.id, None).await.map_err(unavailable("start a container"))
        };
        if let Err(error) = started.await {
            engine.delete(&created.id).await?;
            return Err(error);
        }
        Ok(created.id)
    }
}
