package bench

import (
	"math"
	"slices"
)

// ratios returns the ratios of equal rounds: what else the machine does changes slowly, and hits both sides of a round alike.
func ratios(over, under []float64) []float64 {
	out := make([]float64, len(over))
	for i := range over {
		out[i] = over[i] / under[i] // a transfer gives no zero
	}
	return out
}

// quantile returns the smallest value that at least the share q of all values do not pass; 0 of none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(int(math.Ceil(q*float64(len(sorted))))-1, 0)]
}
