package coordinate

import (
	"errors"
	"math"
	"time"
)

// Dimensions of the space, besides the height.
const Dimensions = 8

const (
	// limit bounds every length, µs: no path on Earth takes ten seconds. The
	// squares of eight differences add up to less than 2^53, so Distance is
	// exact and the same on every processor.
	limit = 10_000_000
	// minHeight keeps a height from vanishing, for then it could not grow, µs.
	minHeight = 10
	// maxError is the error of a node that knows nothing, per cent.
	maxError = 150
)

// ErrInvalid says that a coordinate cannot be one. Drop it and what came with it.
var ErrInvalid = errors.New("network coordinate outside the possible: ignore it, and suspect the node that sent it")

// Published is a coordinate as others see it, in whole microseconds. The zero
// value means that nothing is known.
type Published struct {
	Vector     [Dimensions]int32 `json:"vector"`     // place, µs
	Height     int32             `json:"height"`     // of the access line, µs, positive
	Adjustment int32             `json:"adjustment"` // half of what predictions miss on average, µs
	Error      uint8             `json:"error"`      // expected relative error, per cent, 1 to 150
	Settled    bool              `json:"settled"`    // the node has found its place: links may be built on it
}

// Check gives ErrInvalid unless p is the zero value or a coordinate that a
// Client could have published.
func (p Published) Check() error {
	if p.IsZero() {
		return nil
	}
	ok := p.Height >= minHeight && p.Height <= limit && p.Adjustment >= -limit && p.Adjustment <= limit &&
		p.Error >= 1 && p.Error <= maxError
	for _, x := range p.Vector {
		ok = ok && x >= -limit && x <= limit
	}
	if !ok {
		return ErrInvalid
	}
	return nil
}

// IsZero reports whether p says nothing.
func (p Published) IsZero() bool { return p == Published{} }

// Distance predicts the round trip time between p and q, which have passed
// Check and are not zero. It is symmetric, positive, and the same on every
// machine.
func (p Published) Distance(q Published) time.Duration {
	d := p.raw(q)
	if adjusted := d + int64(p.Adjustment) + int64(q.Adjustment); adjusted > 0 {
		d = adjusted
	}
	return time.Duration(d) * time.Microsecond
}

// raw is the distance without adjustments, µs.
func (p Published) raw(q Published) int64 {
	var sum int64
	for i := range p.Vector {
		d := int64(p.Vector[i]) - int64(q.Vector[i])
		sum += d * d
	}
	return int64(math.Sqrt(float64(sum))) + int64(p.Height) + int64(q.Height)
}
