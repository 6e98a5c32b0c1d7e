package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/memberlist"
)

// Keys say how gossip is encrypted: AES-GCM with keys of 16, 24 or 32 bytes.
// They are changed in steps, so that members of two neighbouring ones hear each
// other: first all Accept a key, then they Use it, then none accepts the one of
// before, or what is in the clear. The zero Keys are of somebody who was given
// none and waits for them.
type Keys struct {
	Use    []byte   // nil: what is said is not encrypted
	Accept [][]byte // with Use
	Clear  bool     // accept what is not encrypted
}

func (k Keys) none() bool { return k.Use == nil && !k.Clear }

func (k Keys) check() error {
	for _, key := range k.Accept {
		if err := memberlist.ValidateKey(key); err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
	if k.Use != nil && !k.accepts(k.Use) {
		return errors.New("gossip: the key to use is not one to accept")
	}
	return nil
}

func (k Keys) accepts(key []byte) bool {
	return slices.ContainsFunc(k.Accept, func(o []byte) bool { return bytes.Equal(o, key) })
}

// alike reports whether a memberlist that was made with one of them can go on
// with the other: its keyring may change, the rest of its configuration not.
func (k Keys) alike(o Keys) bool { return k.Clear == o.Clear && (k.Use == nil) == (o.Use == nil) }

// first is the one at the head of the keyring; nil: there are none.
func (k Keys) first() []byte {
	if k.Use == nil && len(k.Accept) > 0 {
		return k.Accept[0]
	}
	return k.Use
}

// turn makes a keyring that is in use hold these keys.
func (k Keys) turn(ring *memberlist.Keyring) error {
	if k.first() == nil {
		return nil // it says nothing with those that it has
	}
	add := func() error {
		for _, key := range k.Accept {
			if err := ring.AddKey(key); err != nil {
				return fmt.Errorf("gossip: %w", err)
			}
		}
		return nil
	}
	if err := add(); err != nil {
		return err
	}
	if err := ring.UseKey(k.first()); err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	// RemoveKey moves the keys behind it in the very list that others are reading,
	// so all from there on go, the last one first, and come again.
	held := ring.GetKeys()
	from := slices.IndexFunc(held, func(key []byte) bool { return !k.accepts(key) })
	if from < 0 {
		return nil
	}
	for _, key := range slices.Backward(slices.Clone(held[from:])) {
		if err := ring.RemoveKey(key); err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
	return add()
}

// SetKeys changes the keys. Where that turns encryption on, or makes it a must,
// memberlist begins anew, which the others hardly notice. Keys without one to
// speak with change nothing: whoever lost its keys may be heard with the old ones.
func (g *Gossip) SetKeys(keys Keys) error {
	if err := keys.check(); err != nil {
		return err
	}
	if keys.none() {
		return nil
	}
	g.keying.Lock()
	defer g.keying.Unlock()
	before := g.keys
	g.keys = keys
	if g.ring != nil && before.alike(keys) {
		return keys.turn(g.ring)
	}
	select {
	case g.rekeyed <- struct{}{}:
	default:
	}
	return nil
}
