//! The codec of the `Run` stream: a plan is encoded once, and its bytes go to every rank.

use prost::bytes::{BufMut, Bytes};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

use crate::v1;

type Answers = ProstCodec<v1::StepPlan, v1::StepResult>;

/// Sends bytes that already are an encoded `StepPlan`; receives `StepResult`s.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EncodedPlans;

#[derive(Clone, Copy, Debug)]
pub(crate) struct AsTheyAre;

impl Codec for EncodedPlans {
    type Encode = Bytes;
    type Decode = v1::StepResult;
    type Encoder = AsTheyAre;
    type Decoder = <Answers as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        AsTheyAre
    }

    fn decoder(&mut self) -> Self::Decoder {
        Answers::raw_decoder(BufferSettings::default())
    }
}

impl Encoder for AsTheyAre {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, plan: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(plan);
        Ok(())
    }
}
