//go:build race

package gossip_test

// The race detector makes everything some ten times slower; races need no crowd.
func init() { crowd = 30 }
