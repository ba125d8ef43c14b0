//! The router's test and benchmark partner: a worker without a model.
