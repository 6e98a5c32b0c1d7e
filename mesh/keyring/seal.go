package keyring

import (
	"crypto/ecdh"
	"crypto/hpke"
	"fmt"

	"guywire/mesh"
)

// The suite of sealed messages (RFC 9180 section 7): DHKEM(X25519, HKDF-SHA256),
// HKDF-SHA256, ChaCha20Poly1305.
func suite() (hpke.KDF, hpke.AEAD) { return hpke.HKDFSHA256(), hpke.ChaCha20Poly1305() }

// Seal encrypts a message to the holder of a WireGuard key: HPKE (RFC 9180) in
// base mode, 32 bytes of encapsulated key and then the ciphertext. Only who
// gives the same info can open it; it says nothing of who sealed it.
func Seal(to mesh.WireGuardKey, info, message []byte) ([]byte, error) {
	point, err := ecdh.X25519().NewPublicKey(to[:])
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	key, err := hpke.NewDHKEMPublicKey(point)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	kdf, aead := suite()
	sealed, err := hpke.Seal(key, kdf, aead, info, message)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return sealed, nil
}

// Unseal reads what was sealed to the WireGuard key of an epoch. ErrNoKey:
// never made here, or retired.
func (r *Ring) Unseal(epoch mesh.Epoch, info, sealed []byte) ([]byte, error) {
	r.mu.Lock()
	k, ok := r.epochs[epoch]
	r.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("unseal with the key of epoch %d: %w", epoch, ErrNoKey)
	}
	key, err := hpke.NewDHKEMPrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("unseal with the key of epoch %d: %w", epoch, err)
	}
	kdf, aead := suite()
	message, err := hpke.Open(key, kdf, aead, info, sealed)
	if err != nil {
		return nil, fmt.Errorf("unseal with the key of epoch %d: it was sealed for somebody else, or damaged: %w", epoch, err)
	}
	return message, nil
}
