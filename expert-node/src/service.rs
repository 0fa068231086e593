//! The node's gRPC services. They pass requests on; nothing is computed here.

use std::sync::Arc;

use ds4_proto::limits::OLDEST_PROTOCOL_VERSION;
use ds4_proto::pb;
use ds4_proto::pb::expert_compute_server::ExpertCompute;
use ds4_proto::pb::node_control_server::NodeControl;
use ds4_proto::wire::{Versions, encode_held, seal};
use tonic::{Request, Response, Status, Streaming};

use crate::outbox::Outbox;
use crate::session;
use crate::state::{NodeState, Phase};

/// The services of one node. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct NodeService(pub(crate) Arc<NodeState>);

#[tonic::async_trait]
impl ExpertCompute for NodeService {
    type ComputeStream = Outbox;

    async fn compute(
        &self,
        request: Request<Streaming<pb::ComputeRequest>>,
    ) -> Result<Response<Self::ComputeStream>, Status> {
        session::open(Arc::clone(&self.0), request.into_inner())
            .await
            .map(Response::new)
    }
}

#[tonic::async_trait]
impl NodeControl for NodeService {
    async fn describe(
        &self,
        request: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeReply>, Status> {
        let node = &self.0;
        let identity = &node.identity;
        let held = encode_held(&identity.held);
        let phase = node.phase.borrow().clone();
        Ok(Response::new(seal(pb::DescribeReply {
            protocol_version: Versions::of_description(request.get_ref()),
            oldest_version: OLDEST_PROTOCOL_VERSION,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            model: identity.model.clone(),
            fingerprint: identity.fingerprint.to_vec().into(),
            layers: identity.shape.layers as u32,
            hidden: identity.shape.hidden as u32,
            grid_experts: identity.shape.grid.experts,
            grid_blocks: identity.shape.grid.blocks,
            held: held.held,
            held_layers: held.held_layers,
            kernels: identity.kernels.clone(),
            threads: node.threads as u32,
            weight_bytes: identity.weight_bytes,
            draining: phase != Phase::Serving,
            out_of_service: match &phase {
                Phase::OutOfService(fault) => fault.0.to_string(),
                _ => String::new(),
            },
            counters: Some(node.stats.snapshot()),
            used: identity.shape.experts_used as u32,
            instance_id: node.instance.to_vec().into(),
            checksum: 0,
        })))
    }
}
