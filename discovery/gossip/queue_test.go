package gossip

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"guywire/discovery"
	"guywire/mesh"
)

// TestMemberlist263Queue: what comes while others are on their way is sent as
// often as anything else, also when all have one length; and of the same subject
// only the newest.
func TestMemberlist263Queue(t *testing.T) {
	const times = 2 * retransmits // with 8 members
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		var q queue
		sent, last, put := map[string]int{}, map[discovery.Subject]string{}, 0
		take := func() {
			limit, before := 30+random.IntN(60), len(sent)
			size := 0
			for _, m := range q.take(2, limit, 8) {
				sent[string(m)]++
				size += 2 + len(m)
			}
			if size > limit || size == 0 && before < put && len(q.waiting) > 0 {
				t.Fatalf("seed %d: %d bytes in a packet of %d", seed, size, limit)
			}
		}
		for range 60 {
			if random.IntN(3) == 0 {
				about := discovery.Subject{Node: mesh.NodeID{byte(random.IntN(12))}}
				if slices.ContainsFunc(q.waiting, func(w *waiting) bool { return w.about == about }) {
					sent[last[about]] = times // replaced: it need not be sent
				}
				put++
				last[about] = fmt.Sprintf("message %08d", put)
				q.put(about, []byte(last[about]))
			}
			take()
		}
		for range 1000 {
			if len(q.waiting) > 0 {
				take()
			}
		}
		if len(sent) != put {
			t.Errorf("seed %d: %d of %d were sent", seed, len(sent), put)
		}
		for text, n := range sent {
			if n != times {
				t.Errorf("seed %d: %s was sent %d times, want %d", seed, text, n, times)
			}
		}
	}
}

// The fewest times sent goes first, of those the newest, and a packet is filled.
func TestQueueOrder(t *testing.T) {
	var q queue
	for i, text := range []string{"aaaa", "bbbb", "cccccccc", "dddd"} {
		q.put(discovery.Subject{Node: mesh.NodeID{byte(i)}}, []byte(text))
	}
	for _, want := range []string{"[dddd bbbb]", "[cccccccc]", "[aaaa dddd]", "[cccccccc]"} {
		if got := fmt.Sprintf("%s", q.take(1, 10, 8)); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	q.drop(discovery.Subject{Node: mesh.NodeID{1}})
	q.drop(discovery.Subject{Node: mesh.NodeID{3}})
	if got := fmt.Sprintf("%s", q.take(1, 6, 8)); got != "[aaaa]" {
		t.Error(got)
	}
	q.drop(discovery.Subject{Node: mesh.NodeID{0}})
	if got := q.take(1, 8, 8); got != nil {
		t.Errorf("%s does not fit", got)
	}
}
