// Causal attention over KV pages: of single tokens (decode), and of several tokens of a row (prefill).
#pragma once

#include "attend_decode.cu"
#include "attend_prefill.cu"
