package invite

import (
	"crypto/ecdh"
	"encoding/hex"
	"fmt"
	"slices"

	"guywire/mesh"
)

// CheckWireGuardKey refuses with ErrKey a Curve25519 key that does not stand
// for one holder: of low order (every private key gives the same secret with
// it), or not reduced below 2^255-19, which X25519 reads as another key
// (RFC 7748 section 5), so that a ban could be evaded by spelling.
func CheckWireGuardKey(key mesh.WireGuardKey) error {
	if !reduced(key) {
		return fmt.Errorf("WireGuard key %s: %w", key, ErrKey)
	}
	public, err := ecdh.X25519().NewPublicKey(key[:])
	if err == nil {
		// Clamped scalars are multiples of 8, so any one finds the low orders.
		_, err = anyScalar.ECDH(public)
	}
	if err != nil {
		return fmt.Errorf("WireGuard key %s: %w", key, ErrKey)
	}
	return nil
}

var anyScalar = func() *ecdh.PrivateKey {
	k, err := ecdh.X25519().NewPrivateKey(slices.Repeat([]byte{1}, 32))
	if err != nil {
		panic(err)
	}
	return k
}()

// CheckIdentityKey refuses with ErrKey an Ed25519 key that anyone can sign
// for, because its point has low order, or whose encoding is not reduced.
func CheckIdentityKey(key mesh.IdentityKey) error {
	y := key
	y[31] &= 0x7f // the top bit is the sign of x
	if !reduced(y) || slices.Contains(lowOrder, y) {
		return fmt.Errorf("identity key %s: %w", key, ErrKey)
	}
	return nil
}

// lowOrder are the reduced y coordinates of the Ed25519 points of order 1, 2,
// 4 and 8; the sign of x does not matter.
var lowOrder = []mesh.IdentityKey{
	fromHex("0000000000000000000000000000000000000000000000000000000000000000"),
	fromHex("0100000000000000000000000000000000000000000000000000000000000000"),
	fromHex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
	fromHex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
	fromHex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
}

func fromHex(s string) mesh.IdentityKey {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return mesh.IdentityKey(b)
}

// reduced reports whether the little-endian number is below p = 2^255-19.
func reduced[K ~[32]byte](k K) bool {
	p := [32]byte{0: 0xed, 31: 0x7f}
	for i := 1; i < 31; i++ {
		p[i] = 0xff
	}
	b := [32]byte(k)
	slices.Reverse(p[:])
	slices.Reverse(b[:])
	return slices.Compare(b[:], p[:]) < 0
}
