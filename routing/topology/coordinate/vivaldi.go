package coordinate

import (
	"math"
	"math/rand/v2"
)

// The constants of Vivaldi as Serf has them. Lengths are in seconds.
const (
	errorGain    = 0.25 // c_e: how far one sample moves the error
	forceGain    = 0.25 // c_c: how far one sample moves the node
	adjustWindow = 20   // samples
	gravityRho   = 150  // distance from the origin at which a sample pulls by 1 s
	tiny         = 1e-6 // below it two nodes are on one spot
	// maxStep bounds what one sample moves the node by, so that a peer that
	// lies about its place drags nobody far.
	maxStep = 0.020
)

type vector [Dimensions]float64

// vivaldi is one node's coordinate while it moves.
type vivaldi struct {
	rng        *rand.Rand
	place      vector
	height     float64
	adjustment float64
	error      float64               // expected relative error
	misses     [adjustWindow]float64 // of the newest samples, without adjustment
	missed     int
}

// newVivaldi starts at p, or at the origin when p is zero. rng says where to go
// when two nodes are on one spot.
func newVivaldi(rng *rand.Rand, p Published) *vivaldi {
	v := &vivaldi{rng: rng}
	v.reset(p)
	return v
}

func (v *vivaldi) reset(p Published) {
	if p.IsZero() {
		p = Published{Height: minHeight, Error: maxError}
	}
	*v = vivaldi{rng: v.rng, height: seconds(p.Height), adjustment: seconds(p.Adjustment), error: float64(p.Error) / 100}
	for i, x := range p.Vector {
		v.place[i] = seconds(x)
	}
	for i := range v.misses {
		v.misses[i] = 2 * v.adjustment
	}
}

// update moves the node by one round trip to a peer at theirs, which is valid
// and not zero.
func (v *vivaldi) update(theirs Published, rtt float64) {
	var other vector
	for i, x := range theirs.Vector {
		other[i] = seconds(x)
	}
	raw := v.distance(other) + v.height + seconds(theirs.Height)
	predicted := raw
	if adjusted := raw + v.adjustment + seconds(theirs.Adjustment); adjusted > 0 {
		predicted = adjusted
	}

	weight := v.error / (v.error + float64(theirs.Error)/100)
	v.error += errorGain * weight * (math.Abs(predicted-rtt)/rtt - v.error)
	v.error = min(v.error, maxError/100.0)
	step := forceGain * weight * (rtt - predicted)
	v.push(min(max(step, -maxStep), maxStep), other, seconds(theirs.Height))

	raw = v.distance(other) + v.height + seconds(theirs.Height)
	v.misses[v.missed] = rtt - raw
	v.missed = (v.missed + 1) % adjustWindow
	v.adjustment = 0
	for _, m := range v.misses {
		v.adjustment += m / (2 * adjustWindow)
	}

	pull := (v.distance(vector{}) + v.height) / gravityRho
	v.push(-pull*pull, vector{}, 0)

	if !v.sane() {
		v.reset(Published{}) // to start over is better than to publish nonsense
	}
}

func (v *vivaldi) distance(other vector) float64 {
	var sum float64
	for i := range other {
		d := v.place[i] - other[i]
		sum += d * d
	}
	return math.Sqrt(sum)
}

// push moves the node by force away from other, or towards it when force is
// negative, and shares the force between place and height.
func (v *vivaldi) push(force float64, other vector, height float64) {
	apart := v.distance(other)
	var way vector
	for i := range way {
		way[i] = v.place[i] - other[i]
	}
	length := apart
	for length <= tiny { // on one spot: any way will do
		for i := range way {
			way[i] = v.rng.Float64() - 0.5
		}
		var sum float64
		for _, x := range way {
			sum += x * x
		}
		length = math.Sqrt(sum)
	}
	for i := range way {
		v.place[i] += force * way[i] / length
	}
	if apart > tiny {
		v.height = max(v.height+(v.height+height)*force/apart, seconds(minHeight))
	}
}

// sane reports whether the coordinate can be published; NaN is not sane.
func (v *vivaldi) sane() bool {
	sane := v.height < seconds(limit) && math.Abs(v.adjustment) < seconds(limit) && v.error >= 0
	for _, x := range v.place {
		sane = sane && math.Abs(x) < seconds(limit)
	}
	return sane
}

// published is the coordinate in the form for others, rounded.
func (v *vivaldi) published() Published {
	p := Published{Height: micros(v.height), Adjustment: micros(v.adjustment)}
	p.Error = uint8(max(math.Ceil(v.error*100), 1))
	for i, x := range v.place {
		p.Vector[i] = micros(x)
	}
	return p
}

func seconds(us int32) float64 { return float64(us) / 1e6 }

func micros(s float64) int32 { return int32(math.Round(s * 1e6)) }
