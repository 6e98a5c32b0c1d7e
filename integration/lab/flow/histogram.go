package flow

import (
	"math"
	"math/bits"
	"time"
)

// Latency summarises durations. P50 and P99 are at most 3.2 % above the true values, Min and Max are exact.
type Latency struct {
	Min time.Duration `json:"min_ns"`
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
}

// Each power of two is split into subBuckets buckets of equal width.
const (
	subBits    = 5
	subBuckets = 1 << subBits
	buckets    = (64 - subBits) * subBuckets
)

// histogram counts durations in buckets that grow with them, in constant memory.
type histogram struct {
	counts   [buckets]uint64
	total    uint64
	min, max time.Duration
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	if h.total == 0 {
		h.min = d
	}
	h.min, h.max = min(h.min, d), max(h.max, d)
	h.counts[bucket(uint64(d))]++
	h.total++
}

func (h *histogram) summary() Latency {
	return Latency{Min: h.min, P50: h.quantile(0.50), P99: h.quantile(0.99), Max: h.max}
}

// quantile returns the smallest value that at least the share q of all values do not pass, rounded up to its bucket.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(q * float64(h.total)))
	var sum uint64
	for i, n := range h.counts {
		if sum += n; n > 0 && sum >= rank {
			return min(bucketEnd(i), h.max)
		}
	}
	return 0
}

// bucket returns the index for v: v itself while it is small, then its highest bit and the subBits behind it.
func bucket(v uint64) int {
	if v < subBuckets {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return shift*subBuckets + int(v>>shift)
}

// bucketEnd returns the largest value of bucket i.
func bucketEnd(i int) time.Duration {
	if i < subBuckets {
		return time.Duration(i)
	}
	shift := i/subBuckets - 1
	return time.Duration(uint64(i-shift*subBuckets+1)<<shift - 1)
}
