pub mod v1 { tonic::include_proto!("millrace.v1"); }
