package model
import ("testing";"fmt";"time")
func TestTmp(t *testing.T) {
	for s := uint64(1); s < 140; s++ {
		w := Run(s, Options{})
		if w.Settling > 8*time.Second { fmt.Println(s, w.Settling, w.long, len(w.nodes)) }
	}
}
