//go:build race

package sim

// The race detector makes everything some ten times slower, and a world is one
// goroutine: what races would race in a few of them, too.
func init() { thin = 3 }
