-- Answers of one output, newest first: old ones are forgotten.
CREATE INDEX static_refund_output ON static_refund (txid, vout, created_at DESC);
