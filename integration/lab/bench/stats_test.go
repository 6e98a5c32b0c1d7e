package bench

import (
	"testing"
)

func TestRatios(t *testing.T) {
	// The machine slows down to a tenth; each round by itself says 0.9, 1 or 1.1.
	if got := quantile(ratios([]float64{900, 500, 110}, []float64{1000, 500, 100}), 0.5); got != 1 {
		t.Errorf("got %v", got)
	}
}

func TestQuantile(t *testing.T) {
	v := []float64{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := quantile(v, q); got != want {
			t.Errorf("quantile %v of %v: %v, want %v", q, v, got, want)
		}
	}
	if v[0] != 5 {
		t.Error("the values were reordered")
	}
	if quantile(nil, 0.5) != 0 {
		t.Error("of no values")
	}
}
