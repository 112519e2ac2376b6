//! Metrics of what computes for each worker, and of what was lost.

use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::ByWorker;
use crate::worker::Worker;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDevice {
    worker: String,
    device: String,
}

/// What is known of them.
#[derive(Default)]
pub(super) struct DeviceMetrics {
    healthy: Family<ByWorker, Gauge>,
    devices: Family<ByDevice, Gauge>,
    failures: Family<ByWorker, Counter>,
    restarts: Family<ByWorker, Counter>,
    moved: Family<ByWorker, Counter>,
}

impl DeviceMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("worker_healthy", "Whether a worker can compute, 0 or 1", self.healthy.clone());
        r.register("worker_device", "What computes for a worker: 1 for its device", self.devices.clone());
        r.register("executor_failures", "Executors that were lost", self.failures.clone());
        let restarts = "Executors that took the place of one that was lost";
        r.register("executor_restarts", restarts, self.restarts.clone());
        let moved = "Sequences of a worker without executor that another one went on with";
        r.register("sequences_moved", moved, self.moved.clone());
    }

    pub(super) fn collect(&self, w: &Worker) {
        let worker = w.name.to_string();
        let label = ByWorker { worker: worker.clone() };
        self.healthy.get_or_create(&label).set(w.load.is_healthy().into());
        self.devices.get_or_create(&ByDevice { worker, device: w.device.to_string() }).set(1);
        for (counter, cell) in [
            (&self.failures, &w.load.executor_failures),
            (&self.restarts, &w.load.executor_restarts),
            (&self.moved, &w.load.sequences_moved),
        ] {
            counter.get_or_create(&label).inner().store(cell.load(Relaxed), Relaxed);
        }
    }
}
